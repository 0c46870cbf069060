//! `preheat man`: the manual, a page for the command and one for each verb, from the definition that also parses them.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::args::{Cli, ManArgs};
use super::exit;
use super::screen::print;

/// A page and its file's name.
#[derive(Debug)]
struct Page {
    name: String,
    roff: Vec<u8>,
}

pub(super) fn run(args: &ManArgs) -> anyhow::Result<ExitCode> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    collect(&command, &mut pages)?;
    let Some(directory) = &args.out else {
        print(pages.into_iter().flat_map(|page| page.roff).collect::<Vec<u8>>())?;
        return Ok(ExitCode::SUCCESS);
    };
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let mut written = String::new();
    for page in pages {
        let file = directory.join(&page.name);
        std::fs::write(&file, &page.roff).with_context(|| format!("write {}", file.display()))?;
        written.push_str(&format!("{}\n", file.display()));
    }
    print(written)?;
    Ok(ExitCode::SUCCESS)
}

/// The page of a command and those of its verbs, the command's first.
fn collect(command: &Command, pages: &mut Vec<Page>) -> std::io::Result<()> {
    pages.push(page(command)?);
    command.get_subcommands().filter(|verb| !verb.is_hide_set()).try_for_each(|verb| collect(verb, pages))
}

fn page(command: &Command) -> std::io::Result<Page> {
    // An empty date would be left out, and what follows would take its place; none at all, so that pages of one version are equal.
    let source = concat!("preheat ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).date(" ").source(source).manual("preheat manual");
    let mut roff = Vec::new();
    man.render_title(&mut roff)?;
    man.render_name_section(&mut roff)?;
    man.render_synopsis_section(&mut roff)?;
    man.render_description_section(&mut roff)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(&mut roff)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut roff)?;
    }
    // Each page is read by itself, so each has the codes.
    let mut status = Roff::new();
    status.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in std::iter::once((0, "done")).chain(exit::codes()) {
        status.control("TP", []).text([bold(code.to_string())]).text([roman(meaning)]);
    }
    status.to_writer(&mut roff)?;
    Ok(Page { name: man.get_filename(), roff })
}
