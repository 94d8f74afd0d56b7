"""The command `cjm-workflow-sessions`."""

def main(
    argv: list[str]|None = None, # Arguments; None takes those of the process
) -> int: # Exit code
    "Run a command; the rooms of this folder are loaded now and not before."
    from .commands import main as run
    return run(argv)
