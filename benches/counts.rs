//! The hot pieces, each as often as it says, for `scripts/counts`, which counts instructions and allocations: `counts NAME`;
//! `counts none` for what making the inputs takes, `counts` for names and times.
#![allow(clippy::expect_used, reason = "a bench stops at the first surprise")]

mod cases;

use std::process::ExitCode;

fn main() -> ExitCode {
    let wanted = std::env::args().nth(1).filter(|word| word != "--bench");
    let cases = cases::all();
    let Some(wanted) = wanted else {
        for case in &cases {
            println!("{} {}", case.name, case.times);
        }
        return ExitCode::SUCCESS;
    };
    if wanted == "none" {
        return ExitCode::SUCCESS;
    }
    let Some(case) = cases.iter().find(|case| case.name == wanted) else {
        eprintln!("no case is named {wanted}");
        return ExitCode::FAILURE;
    };
    for _ in 0..case.times {
        (case.run)();
    }
    ExitCode::SUCCESS
}
