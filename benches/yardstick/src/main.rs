//! What preheat is measured against, beside other programs: the machine itself.
//!
//! `scripts/bench` runs it; by hand: `cargo run --release -- --help` in this directory. Nothing here uses preheat's code, so that what
//! both did wrong alike cannot cancel out.

mod bytes;
mod floor;
mod limits;
mod model;
mod origin;
mod read;
mod turns;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(about = "What preheat is measured against: the machine itself", bin_name = "yardstick")]
enum Command {
    /// Fetches files by the least that a verified fetch can be: ranges, hash, write
    Floor(floor::Arguments),
    /// Measures memory, loopback, hashes and disk
    Limits(limits::Arguments),
    /// Writes a model of random bytes
    Model(model::Arguments),
    /// Serves files as a distant origin would: latency, bandwidth, stalls, TLS
    Origin(origin::Arguments),
    /// Reads files from disk in each way that there is
    Read(read::Arguments),
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Floor(arguments) => floor::run(&arguments),
        Command::Limits(arguments) => limits::run(&arguments),
        Command::Model(arguments) => model::run(&arguments),
        Command::Origin(arguments) => origin::run(&arguments),
        Command::Read(arguments) => read::run(&arguments),
    };
    match done {
        Ok(facts) => {
            println!("{facts}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("yardstick: {error:#}");
            ExitCode::FAILURE
        }
    }
}
