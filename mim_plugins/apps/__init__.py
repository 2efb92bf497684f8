"""Commands built on the package: the demo, the report, the embedded photographs."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter


def command_parser(name: str, doc: str | None) -> ArgumentParser:
    """The parser of one command, described by its module's docstring as it stands."""
    prog = f"python -m mim_plugins {name}"
    return ArgumentParser(prog, description=doc, formatter_class=RawDescriptionHelpFormatter)


def markdown_table(rows: list[list[str]]) -> str:
    """Rows of cells, the first of them the heading."""
    head, *body = (
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows
    )
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])
