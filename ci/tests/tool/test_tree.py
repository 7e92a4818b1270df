# SPDX-License-Identifier: Apache-2.0
"""Apply, unapply, status and export when nothing is wrong."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from conftest import GENERATED, NAMES, REPO, UPSTREAM, Project, git, message, one_line, other_git
from series.errors import Exit


def test_base_commit_holds_the_bytes_of_the_release(fresh: Project) -> None:
    fresh.ok("unapply")
    for name, data in UPSTREAM.items():
        assert (fresh.tree / name).read_bytes() == data
    assert os.access(fresh.tree / "run.sh", os.X_OK)
    assert not os.access(fresh.tree / "toy/model.py", os.X_OK)
    assert (fresh.tree / "link.py").readlink() == Path("toy/model.py")
    assert not [name for name in GENERATED if (fresh.tree / name).exists()]
    assert git(fresh.tree, "log", "--format=%s|%an") == "toy 1.0|series"
    tracked = git(fresh.tree, "ls-files", "-z").rstrip("\0").split("\0")
    assert sorted(tracked) == sorted([*UPSTREAM, "link.py"])


def test_apply_makes_one_commit_a_patch_and_keeps_subjects(fresh: Project) -> None:
    fresh.ok("apply")
    subjects = git(fresh.tree, "log", "--reverse", "--format=%s", "base..HEAD").splitlines()
    assert subjects == ["[Model] Add the first", "[Model] Add the second", "[Model] Add DOS lines"]
    assert git(fresh.tree, "log", "-1", "--format=%an|%cn") == "Toy Maker|series"
    assert (fresh.tree / "toy/dos.txt").read_bytes() == b"one\r\ntwo and a half\r\nthree\r\n"
    assert git(fresh.tree, "symbolic-ref", "HEAD") == "refs/heads/series"


def test_second_apply_does_nothing_and_needs_no_source(project: Project) -> None:
    before = project.snapshot()
    done = project.run("apply", "--sources", str(project.base), sources=False)
    assert done.stdout.startswith("nothing to do: 3 patches")
    assert project.snapshot() == before


def test_export_of_a_fresh_apply_changes_no_byte(fresh: Project) -> None:
    before = fresh.patches()
    fresh.ok("apply")
    assert "no patch changed" in fresh.ok("export")
    assert fresh.patches() == before


def test_check_passes_and_leaves_the_work_tree(project: Project) -> None:
    before = project.snapshot()
    project.ok("check")
    assert project.snapshot() == before


def test_unapply_and_apply_give_the_same_commit_and_keep_ignored_files(project: Project) -> None:
    head = git(project.tree, "rev-parse", "HEAD")
    (project.tree / "kernel.so").write_bytes(b"built")
    untouched = (project.tree / "toy/trailing.txt").stat().st_mtime_ns
    project.ok("unapply")
    assert (project.tree / "toy/model.py").read_bytes() == UPSTREAM["toy/model.py"]
    assert not (project.tree / "toy/new.py").exists()
    project.ok("apply")
    assert git(project.tree, "rev-parse", "HEAD") == head
    assert (project.tree / "kernel.so").read_bytes() == b"built"
    assert (project.tree / "toy/trailing.txt").stat().st_mtime_ns == untouched


def test_apply_follows_a_shorter_series(project: Project) -> None:
    lock = project.base / "series.lock"
    project.series(*NAMES[:2])
    project.patch(NAMES[2]).unlink()
    lock.write_text("".join(lock.read_text().splitlines(True)[:-1]))
    project.ok("apply")
    assert (project.tree / "toy/dos.txt").read_bytes() == UPSTREAM["toy/dos.txt"]


def test_status_tells_the_states_apart(project: Project) -> None:
    def state() -> str:
        return str(json.loads(project.ok("status", "--json"))["state"])

    assert state() == "current"
    (project.tree / "toy/new.py").write_text("edited\n")
    assert state() == "edited"
    git(project.tree, "checkout", "-q", "toy/new.py")
    project.series(*NAMES[:2])
    assert state() == "outdated"
    project.series(*NAMES)
    project.commit("More", {"more.txt": b"more\n"})
    assert state() == "edited"
    git(project.tree, "reset", "-q", "--hard", "HEAD^")
    project.ok("clean")
    assert state() == "absent"


def test_export_writes_a_new_commit_and_every_tree_agrees(project: Project) -> None:
    project.commit("Add a third: part 2!", {"hidden/third.txt": b"third\n"})
    out = project.ok("export")
    assert "changed add-a-third-part-2.patch" in out
    series = (project.base / "series").read_text()
    assert series == "# the order\n" + "".join(f"{n}\n" for n in (*NAMES, "add-a-third-part-2"))
    assert "add-a-third-part-2" in (project.root / "patches/README.md").read_text()
    lock = (project.base / "series.lock").read_text().splitlines()[-1].split()
    assert lock[0] == "add-a-third-part-2"
    assert lock[2] == project.tree_id()
    # The work tree now has the commit ids of every other machine.
    head = git(project.tree, "rev-parse", "HEAD")
    project.ok("check")
    assert project.ok("apply").startswith("nothing to do")
    project.ok("clean")
    project.ok("apply")
    assert git(project.tree, "rev-parse", "HEAD") == head


def amend(project: Project, title: str, name: str = "") -> None:
    git(project.tree, "commit", "-q", "--amend", "-m", message(title, name))


def test_export_names_a_patch_after_its_trailer_alone(project: Project) -> None:
    (project.tree / "toy/dos.txt").write_bytes(b"one\r\ntwo and a bit\r\nthree\r\n")
    git(project.tree, "add", "-A")
    amend(project, "Another subject and another diff", "add-dos-lines")
    assert "changed add-dos-lines.patch" in project.ok("export")
    assert b"Another subject" in project.patch("add-dos-lines").read_bytes()
    assert len(list(project.base.glob("*.patch"))) == 3
    project.ok("check")


def test_a_patch_is_renamed_by_its_trailer(project: Project) -> None:
    amend(project, "Add DOS lines", "dos")
    assert "renamed add-dos-lines.patch to dos.patch" in project.ok("export")
    assert not project.patch("add-dos-lines").exists()
    assert (project.base / "series").read_text().split()[-3:] == [*NAMES[:2], "dos"]
    assert "\ndos " in (project.base / "series.lock").read_text()
    project.ok("check")
    assert project.ok("apply").startswith("nothing to do")


@pytest.mark.parametrize(
    ("trailers", "says"),
    [
        ("", "has no Patch-Name: trailer"),
        ("Patch-Name: a\nPatch-Name: b\n", "has 2 Patch-Name: trailers"),
        ("Patch-Name: Add_It\n", "Patch-Name: Add_It"),
        ("Patch-Name: 9-lives\n", "Patch-Name: 9-lives"),
        (f"Patch-Name: {'long-' * 8}x\n", "at most 40"),
        ("Patch-Name: add-the-first\n", "two commits have Patch-Name: add-the-first"),
    ],
)
def test_export_refuses_an_unusable_name(trailers: str, says: str, project: Project) -> None:
    text = re.sub(r"Patch-Name: .*\n", trailers, message("Odd"))
    (project.tree / "odd.txt").write_text("odd\n")
    git(project.tree, "add", "-A")
    git(project.tree, "commit", "-q", "-m", text)
    before = project.snapshot()
    done = project.run("export")
    assert done.returncode == Exit.PATCH
    assert says in one_line(done.stderr)
    assert project.snapshot() == before


def test_export_names_a_commit_that_changes_nothing(project: Project) -> None:
    git(project.tree, "commit", "-q", "--allow-empty", "-m", message("Nothing"))
    before = project.snapshot()
    done = project.run("export")
    assert done.returncode == Exit.PATCH
    short = git(project.tree, "log", "-1", "--format=%h (%s)")
    assert f"the commit {short} changes nothing" in one_line(done.stderr)
    assert project.snapshot() == before


def test_export_after_the_files_were_taken_back(project: Project) -> None:
    """git checkout has no other file to restore: the manual says what to do."""
    amend(project, "Another subject", "add-dos-lines")
    project.ok("export")
    git(project.root, "checkout", "-q", ".")
    done = project.run("export")
    assert done.returncode == Exit.DIRTY
    assert "git checkout" not in one_line(done.stderr)
    assert "workflow.md#local-edits" in done.stderr


def test_export_follows_a_reordered_commit(project: Project) -> None:
    dos, second = git(project.tree, "log", "-2", "--format=%H").split()
    git(project.tree, "reset", "-q", "--hard", "HEAD~2")
    git(project.tree, "cherry-pick", dos)
    git(project.tree, "cherry-pick", second)
    project.ok("export")
    assert (project.base / "series").read_text().split()[-3:] == [NAMES[0], NAMES[2], NAMES[1]]
    project.ok("check")


def test_export_drops_a_patch_only_by_name(project: Project) -> None:
    git(project.tree, "reset", "-q", "--hard", "HEAD~2")
    before = project.snapshot()
    for drop in ([], ["--drop", NAMES[1]]):
        done = project.run("export", *drop)
        assert done.returncode == Exit.DIRTY
        assert "add-the-second, add-dos-lines" in one_line(done.stderr)
        assert 'make export DROP="add-the-second add-dos-lines"' in done.stderr
    done = project.run("export", "--drop", " ".join(NAMES))
    assert done.returncode == Exit.USAGE
    assert NAMES[0] in one_line(done.stderr)
    assert project.snapshot() == before
    out = project.ok("export", "--drop", NAMES[1], "--drop", NAMES[2])
    assert "removed add-the-second.patch" in out
    assert [path.stem for path in project.base.glob("*.patch")] == [NAMES[0]]
    project.ok("check")


def test_a_patch_with_an_offset_is_repaired_as_the_manual_says(project: Project) -> None:
    before = project.patches()
    (project.base / "series").write_text(
        "# the order\n#add-the-first\n#add-the-second\n#add-dos-lines\n"
    )
    (project.base / "series.lock").unlink()
    project.ok("apply")
    for name in NAMES[1:]:
        patch = f"../../../patches/v1/{name}.patch"
        git(project.tree, "am", "--keep", "--3way", patch)
    project.patch(NAMES[0]).unlink()
    project.ok("export")
    assert (project.base / "series").read_text().split()[-2:] == list(NAMES[1:])
    assert project.patch(NAMES[1]).read_bytes() != before[str(project.patch(NAMES[1]))]
    project.ok("check")


def test_edits_are_dropped_as_the_manual_says(project: Project) -> None:
    applied = git(project.tree, "rev-parse", "HEAD")
    project.commit("Mine", {"mine.py": b"mine\n"})
    (project.tree / "toy/model.py").write_text("mine\n")
    (project.tree / "new").mkdir()
    (project.tree / "new/file.py").write_text("mine\n")
    git(project.tree, "reset", "--hard")
    git(project.tree, "clean", "-d", "-f")
    git(project.tree, "reset", "--hard", applied)
    project.ok("unapply")


def test_same_tree_from_the_git_tag(fresh: Project, master: Project) -> None:
    fresh.ok("apply", "--source", "git")
    assert git(fresh.tree, "rev-parse", "HEAD") == git(master.tree, "rev-parse", "HEAD")


def test_a_base_whose_commit_nobody_knows(fresh: Project) -> None:
    file = fresh.base / "base.toml"
    file.write_text(re.sub(r"\[git\][^\[]*", "", file.read_text()))
    done = fresh.run("apply", "--source", "git")
    assert done.returncode == Exit.USAGE and "base.toml names no commit" in done.stderr
    fresh.ok("apply", "--source", "archive")


def test_json_is_all_that_is_printed(project: Project) -> None:
    for command in ("status", "apply", "export", "check", "fetch", "unapply", "clean", "doctor"):
        done = project.run(command, "--json")
        assert json.loads(done.stdout)["exit"] == done.returncode, command


# ---- the user's settings ----

SETTINGS = [
    "diff.noprefix=true",
    "diff.mnemonicPrefix=true",
    "diff.algorithm=patience",
    "diff.context=9",
    "diff.interHunkContext=50",
    "diff.renames=copies",
    "diff.indentHeuristic=false",
    "diff.suppressBlankEmpty=true",
    "apply.whitespace=fix",
    "apply.ignoreWhitespace=change",
    "commit.gpgsign=true",
    "core.autocrlf=true",
    "core.abbrev=7",
    "core.quotePath=false",
    "core.fileMode=false",
    "am.threeWay=true",
    "am.keepcr=false",
    "format.signature=mine",
    "format.attach=x",
    "format.subjectPrefix=MINE",
    "format.numbered=true",
    "format.useAutoBase=true",
    "format.noprefix=true",
    "mailinfo.scissors=true",
    "i18n.commitEncoding=latin1",
]


@pytest.mark.parametrize("place", ["user", "variables", "tree"])
def test_git_settings_change_nothing(
    place: str, fresh: Project, master: Project, tmp_path: Path
) -> None:
    env = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    for file in ("attributes", "ignore"):
        (tmp_path / "xdg/git").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"xdg/git/{file}").write_text("*.py text eol=crlf\n*.py\n")
    if place == "user":
        for setting in SETTINGS:
            git(tmp_path, "config", "--file", ".gitconfig", *setting.split("=", 1))
        env["GIT_CONFIG_GLOBAL"] = str(tmp_path / ".gitconfig")
    elif place == "variables":
        env["GIT_CONFIG_COUNT"] = str(len(SETTINGS))
        for number, setting in enumerate(SETTINGS):
            key, value = setting.split("=", 1)
            env[f"GIT_CONFIG_KEY_{number}"], env[f"GIT_CONFIG_VALUE_{number}"] = key, value
        env.update(
            GIT_DIR="/nonexistent",
            GIT_INDEX_FILE="/nonexistent",
            GIT_AUTHOR_DATE="1999-01-01",
            GIT_COMMITTER_NAME="Someone",
            GIT_DIFF_OPTS="-u9",
            TZ="Asia/Seoul",
            LC_ALL="C.UTF-8",
        )
    before = fresh.patches()
    done = fresh.run("apply", env=env, umask=0o77)
    assert done.returncode == 0, done.stderr
    if place == "tree":
        for setting in SETTINGS:
            git(fresh.tree, "config", *setting.split("=", 1))
    fresh.ok("export", env=env)
    fresh.ok("check", env=env)
    assert fresh.patches() == before
    assert git(fresh.tree, "rev-parse", "HEAD") == git(master.tree, "rev-parse", "HEAD")


# ---- more than one command, and killed ones ----


def test_concurrent_applies_agree(fresh: Project) -> None:
    both = [fresh.start("apply") for _ in range(3)]
    said = sorted(process.communicate()[0].split()[0] for process in both)
    assert [process.returncode for process in both] == [0, 0, 0]
    assert said == ["applied", "nothing", "nothing"]
    fresh.ok("check")


# Kills the tool before the step number $KILL_AT: a call of git that writes, a file that is moved or
# removed, and the middle of the removal of a folder.
KILLER = """
import os, signal, sys
WRITING = {"am", "checkout", "config", "fast-import", "fetch", "init", "reset", "tag"}
steps = removed = 0
def hook(event, args):
    global steps, removed
    if event == "subprocess.Popen":
        steps += bool(WRITING.intersection(args[1]))
    elif event == "os.remove" and args[1] != -1:
        removed += 1
        steps += removed % 30 == 10
    elif event in ("os.rename", "os.remove", "shutil.rmtree"):
        steps += 1
    else:
        return
    if steps == int(os.environ["KILL_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
"""


def killed(project: Project, folder: Path, at: int, *command: str) -> int:
    """Run a command and kill it before a step; return how it ended."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(KILLER)
    path = os.pathsep.join([str(folder), str(REPO / "scripts")])
    return project.run(*command, env={"PYTHONPATH": path, "KILL_AT": str(at)}).returncode


def all_changes(project: Project) -> list[str]:
    """A commit more, one less, one changed and one renamed; the command that exports them."""
    git(project.tree, "reset", "-q", "--hard", "HEAD~2")
    (project.tree / "toy/new.txt").write_text("new\n")
    git(project.tree, "add", "-A")
    git(project.tree, "commit", "-q", "--amend", "--no-edit")
    project.commit("More", {"toy/more.txt": b"more\n"})
    project.commit("Dos", {"toy/dos.txt": b"one\r\ntwo and a half\r\nthree\r\n"})
    return ["export", "--drop", NAMES[1]]


@pytest.mark.long
@pytest.mark.parametrize(
    ("start", "steps"),
    [("clean", 16), ("unapply", 20), ("export", 20), ("clean-itself", 3)],
)
def test_a_kill_at_any_step_is_recovered_by_a_rerun(
    start: str, steps: int, project: Project, tmp_path: Path
) -> None:
    command = ["apply"]
    if start == "export":
        command = all_changes(project)
    elif start == "clean-itself":
        command = ["clean"]
    else:
        project.ok(start)
    before = Project(tmp_path / "before", project.sources)
    project.root.rename(before.root)

    def state() -> tuple[object, ...]:
        head, edited = "", ""
        if project.tree.exists():
            head = git(project.tree, "rev-parse", "HEAD", "refs/heads/series", "base")
            edited = git(project.tree, "status", "--porcelain")
        build = sorted(path.name for path in (project.root / "build/v1").iterdir())
        return project.patches(), head, edited, build

    ends = []
    for at in range(1000):  # 0 is never reached: the state to compare with
        shutil.copytree(before.root, project.root, symlinks=True)
        code = killed(project, tmp_path / "bin", at, *command)
        assert code in (0, -signal.SIGKILL)
        if code:
            project.ok(*command)
        ends.append(state())
        assert ends[-1] == ends[0], at
        shutil.rmtree(project.root)
        if at and not code:
            break
    assert len(ends) > steps


def test_apply_killed_in_the_middle_of_a_checkout(project: Project, tmp_path: Path) -> None:
    project.ok("unapply")
    path = other_git(tmp_path, '*"checkout --quiet --force"*) kill -KILL $PPID; sleep 1')
    assert project.run("apply", env={"PATH": path}).returncode == -signal.SIGKILL
    # What a half-done checkout leaves behind.
    (project.tree / ".git/index.lock").write_text("")
    (project.tree / "toy/model.py").unlink()
    (project.tree / "toy/new.py").write_text("half\n")
    assert json.loads(project.ok("status", "--json"))["state"] == "interrupted"
    project.ok("apply")
    assert git(project.tree, "status", "--porcelain") == ""
    project.ok("check")
