//! The `allmend` command: everything it does is in the library beside it.

fn main() -> std::process::ExitCode {
    allmend_node::cli::main()
}
