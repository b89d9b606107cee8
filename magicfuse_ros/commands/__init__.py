"""One module a command of `magicfuse`: HELP, add_arguments(parser) and run(args) -> exit status."""
