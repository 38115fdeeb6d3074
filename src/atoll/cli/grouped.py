"""`atoll --help`: the commands in the order in which they are used, under a heading each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typer.core import TyperGroup

if TYPE_CHECKING:
    from typer._click import Context, HelpFormatter

SECTIONS = {
    "Begin": ("demo", "doctor", "tasks", "init", "schema"),
    "Tune and evaluate": ("check", "tune", "eval", "report", "cost"),
    "Answer": ("run", "chat", "serve", "ps", "keys"),
    "Adapters": ("ls", "show", "import", "export", "push", "pull", "rm"),
    "Shell": ("completion",),
}


class GroupedCommands(TyperGroup):
    """The root command; a command that stands in no section comes last."""

    def list_commands(self, ctx: Context) -> list[str]:
        placed = [name for names in SECTIONS.values() for name in names]
        return [name for name in placed if name in self.commands] + [
            name for name in self.commands if name not in placed
        ]

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        names = [name for name in self.list_commands(ctx) if not self.commands[name].hidden]
        width = max(map(len, names))
        placed = [name for group in SECTIONS.values() for name in group]
        others = tuple(name for name in names if name not in placed)
        for heading, group in (*SECTIONS.items(), ("Others", others)):
            limit = formatter.width - 6 - width
            rows = [
                (name.ljust(width), self.commands[name].get_short_help_str(limit)) for name in group if name in names
            ]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)
