//! The `preheat` command.

fn main() -> std::process::ExitCode {
    preheat::cli::main()
}
