#!/usr/bin/env python3
"""Checks commit messages: a subject of at most 72 characters that begins with a plain verb.

``check_commits.py FILE`` checks the message that is about to be committed: pre-commit's commit-msg stage. Without a
file it checks the commits that are newer than this rule, which CI does. Those are the commits after the one that added
this file: so older ones pass, in every clone, also in a shallow one or one of a single branch.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve()
LONGEST = 72
# Words in which the ending is part of the verb.
PLAIN = {
    *("Bring", "Cling", "Ring", "Spring", "String", "Swing", "Alias", "Bias", "Focus", "Canvas"),
    *(
        "Bleed",
        "Breed",
        "Embed",
        "Exceed",
        "Feed",
        "Heed",
        "Need",
        "Proceed",
        "Seed",
        "Shed",
        "Shred",
        "Speed",
        "Succeed",
    ),
}
# What begins a description of the change where a verb should say what it does.
NO_VERBS = {
    "A",
    "An",
    "All",
    "Better",
    "Initial",
    "It",
    "Minor",
    "More",
    "New",
    "No",
    "Now",
    "Some",
    "The",
    "This",
    "We",
    "Wip",
}
# What git itself writes, and Dependabot, whose subjects name versions.
# `fixup!` and the like are for a rebase that has yet to come, so CI refuses them.
BY_GIT = re.compile(r'Merge (branch|commit|tag|remote|pull request) |Revert "|Reapply "|Bump \S+ from ')
BEFORE_A_REBASE = re.compile(r"(fixup|squash|amend)! ")


def wrong_with(message: str) -> str | None:
    """Return what is wrong with a commit message; None: nothing."""
    subject, _, body = message.partition("\n")
    if BY_GIT.match(subject):
        return None
    verb = subject.partition(" ")[0].rstrip(",")
    if len(subject) > LONGEST:
        return f"the subject has {len(subject)} characters: say it in {LONGEST}, and why in the body"
    if not re.fullmatch(r"[A-Z][a-z]+", verb) or verb in NO_VERBS or is_inflected(verb):
        return 'begin the subject with a plain verb, as in "Add", "Fix" or "Remove"'
    if subject.endswith("."):
        return "the subject ends with a point: leave it out"
    if body and not body.startswith("\n"):
        return "leave the line after the subject empty"
    return None


def is_inflected(verb: str) -> bool:
    """Return whether this is another form than the plain one: "Added", "Adds", "Adding"."""
    return verb not in PLAIN and re.search(r"(ed|ing|[^s]s)$", verb) is not None


def as_committed(text: str) -> str:
    """Return a message as git will keep it: without comments, and without the diff that `commit --verbose` shows."""
    text = text.partition("# ------------------------ >8")[0]
    return "\n".join(line for line in text.splitlines() if not line.startswith("#")).strip("\n")


def git(*arguments: str) -> str:
    """Return what git says of the repository that this file is in; raises `CalledProcessError`."""
    command = ["git", "-C", str(HERE.parent), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def new_commits() -> list[tuple[str, str]]:
    """Return name and message of each commit since this rule, without merges.

    Where the history is cut off (a shallow clone), its oldest commit seems to have added this file. It is one that came
    after the rule, too, or the one that made it, so it is checked with the others.
    """
    added = git("log", "--diff-filter=A", "--format=%H", "--", HERE.name).split()
    if not added:
        return []
    shallow = git("rev-parse", "--is-shallow-repository").strip() == "true"
    names = git("rev-list", "--no-merges", f"{added[-1]}..HEAD").split() + ([added[-1]] if shallow else [])
    return [(name, git("log", "-1", "--format=%B", name).strip("\n")) for name in names]


def main(arguments: list[str]) -> int:
    """Check a message, or the new commits; return the exit status."""
    if arguments:
        message = as_committed(Path(arguments[0]).read_text("utf-8"))
        found = [] if BEFORE_A_REBASE.match(message) else [("", message)]
    else:
        try:
            found = new_commits()
        except (OSError, subprocess.CalledProcessError):
            print("no history of git here: no commit is checked")
            return 0
        print(f"commits newer than this rule: {len(found)}")
    failed = 0
    for name, message in found:
        if wrong := wrong_with(message):
            failed = 1
            print(f"{name[:9]} {message.partition(chr(10))[0]!r}: {wrong}".strip(), file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
