//! `preheat status`: a node at a glance, or one of its jobs, as it stands or until it has ended, in words or as a picture.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use super::args::StatusArgs;
use super::error::CliError;
use super::follow::{follow, outcome};
use super::job;
use super::picture::{stages, svg, text};
use super::progress::{Meter, Reading};
use super::screen::{Screen, print, print_json};
use super::target::{self, answered, patience};
use super::words;
use crate::base::ErrorKind;
use crate::base::units::ByteSize;
use crate::doors::client::Client;
use crate::prewarm::wire::{JobState, JobView, ModelView, NodeView};

/// Jobs that are shown of those that wait, and of those that have ended: the next ones and the last ones. All are in `--json`.
const SHOWN: usize = 5;

pub(super) async fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let client = target::required(&args.daemon)?;
    let patience = patience(&args.daemon);
    match &args.job {
        Some(id) => of_job(&client, id, patience, &args).await,
        None => of_node(&client, patience, args.json).await,
    }
}

// === a job ===

async fn of_job(client: &Client, id: &str, patience: Duration, args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let picture_alone = args.svg.as_deref() == Some(Path::new("-"));
    if picture_alone && (args.json || args.timeline) {
        return Err(CliError::invalid("--svg - takes stdout for itself: name a file, or leave the others out").into());
    }
    let shown = if args.watch {
        let mut meter = Meter::new("status", args.json);
        let followed = follow(client, id, patience, |job| {
            if args.json {
                print_json(job)?;
            }
            meter.update(Reading::of(job));
            Ok(())
        });
        let followed = followed.await;
        meter.finish();
        followed?
    } else {
        let shown = answered(client, patience, client.job(id)).await?;
        if args.json {
            print_json(&shown)?;
        }
        shown
    };
    let chart = || stages::of(&shown, &job::state(&shown));
    match &args.svg {
        Some(_) if picture_alone => print(svg::draw(&chart()))?,
        Some(file) => std::fs::write(file, svg::draw(&chart())).map_err(|error| {
            CliError::new(ErrorKind::of_io(&error), format!("write the picture to {}: {error}", file.display()))
        })?,
        None => {}
    }
    if !args.json && !picture_alone {
        let screen = Screen::of_stdout();
        let mut lines = job::lines(&shown, &screen);
        if args.timeline {
            lines.push(String::new());
            lines.push(text::draw(&chart(), &screen).trim_end().to_owned());
        }
        print(lines.join("\n") + "\n")?;
    }
    // Whoever only asks has got the answer, whatever it is.
    if args.watch { outcome(&shown, args.json) } else { Ok(ExitCode::SUCCESS) }
}

// === the node ===

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Glance {
    node: NodeView,
    models: Vec<ModelView>,
    jobs: Vec<JobView>,
}

async fn of_node(client: &Client, patience: Duration, json: bool) -> anyhow::Result<ExitCode> {
    let all = async { tokio::try_join!(client.node(), client.models(), client.jobs()) };
    let (node, models, jobs) = answered(client, patience, all).await?;
    let glance = Glance { node, models, jobs };
    if json {
        print_json(&glance)?;
    } else {
        let screen = Screen::of_stdout();
        let lines = glance.lines();
        print(lines.iter().map(|line| format!("{}\n", screen.plain(line))).collect::<String>())?;
    }
    Ok(ExitCode::SUCCESS)
}

// === impl Glance ===

impl Glance {
    fn lines(&self) -> Vec<String> {
        let Self { node, models, jobs } = self;
        let mut lines = vec![format!("{}: {}", node.hostname, if node.ready { "ready" } else { "starts or drains" })];
        if let Some(detail) = &node.halted {
            lines.push(format!("  the store has stopped writing: {detail}"));
        }
        let mut has = vec![format!("{} CPUs", node.cpus), format!("{} of memory", ByteSize(node.memory_bytes))];
        has.extend(node.gpus.first().map(|gpu| format!("{} x {gpu}", node.gpus.len())));
        lines.push(format!("  preheat {}, {}", node.version, has.join(", ")));
        lines.push(format!("  store {}: {}", node.root.display(), self.usage()));
        if let Some(refused) = &node.disk.ring_refused {
            lines.push(format!("  no io_uring, so a pool of threads reads and writes: {refused}"));
        }
        let bytes = models.iter().map(|model| model.bytes).sum();
        let kept = models.iter().filter(|model| !model.pins.is_empty()).count();
        lines.push(format!("  {} models, {}, {kept} of them pinned or leased", models.len(), ByteSize(bytes)));
        let in_state =
            |wanted: &dyn Fn(JobState) -> bool| jobs.iter().filter(|job| wanted(job.state)).collect::<Vec<_>>();
        let running = in_state(&|state| state == JobState::Running);
        let mut queued = in_state(&|state| state == JobState::Queued);
        let over = in_state(&JobState::is_over);
        lines.push(format!("  jobs: {} running, {} waiting", running.len(), queued.len()));
        for one in running {
            lines.push(format!("{}: {}", one.id, job::state(one)));
            lines.push(format!("  {}", job::about(one)));
            let progress = job::progress(one);
            if !progress.is_empty() {
                lines.push(format!("  {progress}"));
            }
        }
        // They are told newest first; what came first is next.
        queued.reverse();
        for one in queued.iter().take(SHOWN) {
            lines.push(format!("{}: queued for {}", one.id, words::seconds(one.seconds)));
            lines.push(format!("  {}", job::about(one)));
        }
        if queued.len() > SHOWN {
            lines.push(format!("and {} more that wait", queued.len() - SHOWN));
        }
        for one in over.iter().take(SHOWN) {
            lines.push(format!("{}: {}", one.id, job::state(one)));
            lines.push(format!("  {}", job::about(one)));
            lines.extend(one.error.iter().map(|problem| format!("  {}", problem.detail)));
        }
        if over.len() > SHOWN {
            lines.push(format!("and {} more that have ended", over.len() - SHOWN));
        }
        lines
    }

    fn usage(&self) -> String {
        let usage = &self.node.usage;
        let taken = usage.blobs + usage.partials + usage.quarantined;
        let mut text = format!("{} of {}", ByteSize(taken), ByteSize(usage.capacity));
        if usage.capacity > 0 {
            let percent = (taken as f64 * 100.0 / usage.capacity as f64).round();
            text.push_str(&format!(" ({percent:.0} %)"));
        }
        for (bytes, what) in
            [(usage.partials, "unfinished"), (usage.reserved, "promised"), (usage.quarantined, "in quarantine")]
        {
            if bytes > 0 {
                text.push_str(&format!(", {} {what}", ByteSize(bytes)));
            }
        }
        text
    }
}
