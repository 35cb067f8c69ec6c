"""A workspace on disk: any folder with `drafts/` and `tasks/`, and the state kept beside them.

The forms of declarations are imported when one is read: commands that show results read none, and the union of all kinds
takes longer to import than they take altogether.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from draftrank.catalog.base import Declared
from draftrank.catalog.plain_text import unseen_in
from draftrank.errors import InvalidInputError, MissingDataError, Problem
from draftrank.progress import SILENT, Progress

if TYPE_CHECKING:
    from draftrank.catalog.prompts import TaskPrompts
    from draftrank.catalog.recipe import Recipe
    from draftrank.catalog.self_generated import Corpus, SelfGenerated
    from draftrank.catalog.server import Server
    from draftrank.catalog.sources.base import FetchContext, SourceBase
    from draftrank.catalog.target import Target
    from draftrank.catalog.task import Suite, Task

T = TypeVar("T", bound=Declared)
OfTarget = TypeVar("OfTarget", "Corpus", "Recipe")


@dataclass(frozen=True, slots=True)
class Checked:
    """Everything valid in a workspace, and every problem of the rest."""

    targets: tuple[Target, ...]
    tasks: tuple[Task, ...]
    suites: tuple[Suite, ...]
    servers: tuple[Server, ...]
    corpora: tuple[Corpus, ...]
    recipes: tuple[Recipe, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder that declares what is ranked, and where its state lies."""

    root: Path
    """Holds `drafts/` and `tasks/`."""
    state: Path
    """Holds the store and the cache; not under version control."""

    @classmethod
    def open(cls, path: Path | str | None = None) -> Workspace:
        """The workspace at `path`; by default the nearest one at or above the current folder, else
        the one that the installed package carries.

        Raises:
            InvalidInputError: `path` is given and is no workspace.
        """
        if path is not None:
            root = Path(path).resolve()
            if not _is_workspace(root):
                raise InvalidInputError.single(
                    "is not a workspace", file=str(path), fix="name a folder with drafts/ and tasks/"
                )
            return cls(root, _state_folder(root))
        here = Path.cwd()
        for root in (here, *here.parents):
            if _is_workspace(root):
                return cls(root, _state_folder(root))
        packaged = _packaged_folder()
        if _is_workspace(packaged):
            return cls(packaged, _state_folder(here))
        raise InvalidInputError.single(
            "is not in a workspace",
            file=str(here),
            fix="change to a folder with drafts/ and tasks/, or pass --workspace",
        )

    def require_own(self) -> None:
        """Refuses to write declarations or bundles into the installed package, where they would be lost.

        Raises:
            InvalidInputError: this is the workspace that the package carries.
        """
        if self.root == _packaged_folder():
            raise InvalidInputError.single(
                "this workspace is part of the installed package",
                file=str(self.root),
                fix="make your own: a folder with drafts/<target>/target.yaml and tasks/, then work in it",
            )

    @property
    def cache(self) -> Path:
        """Folder of fetched sources, converted targets, corpora and built drafts."""
        return Path(os.environ.get("DRAFTRANK_CACHE") or self.state / "cache")

    @property
    def store_url(self) -> str:
        """SQLAlchemy address of the results store: DRAFTRANK_STORE, or a file in the state's folder."""
        return os.environ.get("DRAFTRANK_STORE") or f"{_SQLITE}{self.state / 'results.sqlite'}"

    @property
    def has_local_store(self) -> bool:
        """Whether results go to a file of this machine and not to a server."""
        return "://" not in self.store_url.removeprefix(_SQLITE)

    @property
    def has_store(self) -> bool:
        """Whether anything may have been measured here: the store's file is there, or it lies in a server."""
        return not self.has_local_store or Path(self.store_url.removeprefix(_SQLITE)).exists()

    @property
    def shared_drafts(self) -> str | None:
        """Address, as fsspec reads it, of the folder in which several machines share built drafts."""
        return os.environ.get("DRAFTRANK_SHARED") or None

    @property
    def published(self) -> Path:
        """Folder of published result bundles."""
        return self.root / "leaderboard" / "results"

    @property
    def published_parities(self) -> Path:
        """Folder of published bundles of parity with other engines."""
        return self.root / "leaderboard" / "parity"

    @property
    def published_serving(self) -> Path:
        """Folder of published serving sessions."""
        return self.root / "leaderboard" / "serving"

    def fetch_context(self, progress: Progress = SILENT) -> FetchContext:
        """What sources need to fetch on this workspace's behalf."""
        from draftrank.catalog.sources.base import FetchContext

        data = os.environ.get("DRAFTRANK_DATA", "")
        roots = (self.root, *(Path(entry).resolve() for entry in data.split(os.pathsep) if entry))
        offline = os.environ.get("DRAFTRANK_OFFLINE", "") not in ("", "0")
        return FetchContext(self.cache, roots, offline, progress, self.shared_drafts)

    def display(self, path: Path) -> str:
        """A path as shown to people: relative to the workspace where it lies inside."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    # -- declarations ----------------------------------------------------------------------------

    def recipe_paths(self, target: str | None = None) -> list[Path]:
        """All recipe files, of one target or of all, sorted."""
        found = (self.root / "drafts").glob(f"{target or '*'}/*.yaml")
        return sorted(path for path in found if path.name != "target.yaml")

    def declaration_paths(self) -> list[tuple[Path, type[Declared]]]:
        """Every declaration of the workspace with the model it must satisfy."""
        from draftrank.catalog.recipe import Recipe
        from draftrank.catalog.self_generated import Corpus
        from draftrank.catalog.server import Server
        from draftrank.catalog.target import Target
        from draftrank.catalog.task import Suite, Task

        found: dict[type[Declared], Iterable[Path]] = {
            Target: self._targets().values(),
            Task: self._files("tasks").values(),
            Suite: self._files("tasks/suites").values(),
            Server: self._files("tasks/servers").values(),
            Corpus: sorted(self.root.glob("drafts/*/corpora/*.yaml")),
            Recipe: self.recipe_paths(),
        }
        return [(path, model) for model, paths in found.items() for path in paths]

    def target(self, target_id: str) -> Target:
        """One target.

        Raises:
            InvalidInputError: it does not exist or is invalid.
        """
        from draftrank.catalog.target import Target

        return self._load(_named("target", target_id, self._targets()), Target)

    def recipe(self, target_id: str, draft_id: str) -> Recipe:
        """One recipe of a target, with the texts of the corpora it names; raises as `target`."""
        from draftrank.catalog.recipe import Recipe

        known = {path.stem: path for path in self.recipe_paths(target_id)}
        if not known:
            _named("target", target_id, self._targets())
        return self._load_of_target(_named("draft", draft_id, known), Recipe)

    def files_of_recipe(self, target_id: str, draft_id: str) -> tuple[Path, ...]:
        """A recipe's file, then the files that it needs: corpora and prompt prefixes, sorted; raises as `target`."""
        from draftrank.catalog.recipe import Recipe

        references = References(self)
        path = self.root / "drafts" / target_id / f"{draft_id}.yaml"
        self._load(path, Recipe, references)
        return (path, *sorted(references.files))

    def find_recipe(self, draft_id: str) -> Recipe:
        """The recipe of this id, whichever target it is for.

        Raises:
            InvalidInputError: there is none, or more than one target has it.
        """
        targets = [path.parent.name for path in self.recipe_paths() if path.stem == draft_id]
        if len(targets) > 1:
            raise InvalidInputError.single(
                f"the draft {draft_id!r} exists for {', '.join(targets)}", fix="name the target with --target"
            )
        path = _named("draft", draft_id, {path.stem: path for path in self.recipe_paths()})
        return self.recipe(path.parent.name, draft_id)

    def task(self, task_id: str) -> Task:
        """One task; raises as `target`."""
        from draftrank.catalog.task import Task

        return self._load(_named("task", task_id, self._files("tasks")), Task)

    def suite(self, suite_id: str) -> Suite:
        """One suite; raises as `target`."""
        from draftrank.catalog.task import Suite

        return self._load(_named("suite", suite_id, self._files("tasks/suites")), Suite)

    def server(self, server_id: str) -> Server:
        """One server; raises as `target`."""
        from draftrank.catalog.server import Server

        return self._load(_named("server", server_id, self._files("tasks/servers")), Server)

    def prompts(self, suite: Suite, progress: Progress = SILENT) -> tuple[list[TaskPrompts], dict[str, str]]:
        """The suite's prompts by task, and for each task whose data cannot be had now, why."""
        from draftrank.catalog.prompts import read_prompts, select_prompts

        context = self.fetch_context(progress)
        found: list[TaskPrompts] = []
        skipped: dict[str, str] = {}
        for entry in suite.tasks:
            task = self.task(entry.task)
            try:
                found.append(select_prompts(suite, entry, task, read_prompts(task, context)))
            except MissingDataError as error:
                skipped[task.id] = f"task {task.id} is skipped: {error}"
        return found, skipped

    def check(self, paths: list[Path] | None = None) -> Checked:
        """Validates every declaration (or those at `paths`) and the references between them."""
        from draftrank.catalog.recipe import Recipe
        from draftrank.catalog.self_generated import Corpus
        from draftrank.catalog.server import Server
        from draftrank.catalog.target import Target
        from draftrank.catalog.task import Suite, Task

        problems: list[Problem] = []
        loaded: list[tuple[Path, Declared]] = []
        references = References(self)
        for path, model in self.declaration_paths():
            try:
                loaded.append((path, self._load(path, model, references)))
            except InvalidInputError as error:
                problems += error.problems
        targets, tasks = self._targets(), self._files("tasks")
        for path, one in loaded:
            file = self.display(path)
            if isinstance(one, Corpus | Recipe):
                if one.target not in targets:
                    problems.append(_unknown("target", one.target, targets, file, "target"))
                elif one.target != self._target_of(path):
                    problems.append(self._wrong_folder(path, one))
            elif isinstance(one, Suite):
                problems += [
                    _unknown("task", entry.task, tasks, file, f"tasks.{index}.task")
                    for index, entry in enumerate(one.tasks)
                    if entry.task not in tasks
                ]
            elif isinstance(one, Task):
                problems += self._check_local_data(path, one)
        if paths:
            shown = {self.display(path.resolve()) for path in paths}
            problems = [problem for problem in problems if problem.file in shown]

        def valid(model: type[T]) -> tuple[T, ...]:
            return tuple(one for _, one in loaded if isinstance(one, model))

        return Checked(
            valid(Target),
            valid(Task),
            valid(Suite),
            valid(Server),
            valid(Corpus),
            valid(Recipe),
            tuple(problems),
        )

    def _check_local_data(self, path: Path, task: Task) -> list[Problem]:
        """Reads task data that needs no fetching, so that `check` sees a bad file at once."""
        from draftrank.catalog.prompts import read_prompts

        found: list[Problem] = []
        if task.source.kind not in ("local", "inline"):  # type: ignore[attr-defined]
            return found
        try:
            read_prompts(task, self.fetch_context())
        except MissingDataError:
            pass  # that is told where they are read
        except InvalidInputError as error:
            file = self.display(path)
            for problem in error.problems:
                place = "" if problem.file is None else f"{problem.file}:{problem.line or ''} "
                field_ = problem.field or "source"
                found.append(Problem(place + problem.message, file, None, field_, problem.fix))
        return found

    def _load(self, path: Path, model: type[T], references: References | None = None) -> T:
        from draftrank.catalog.loading import load_declaration

        references = references or References(self)
        return load_declaration(path, model, self.display(path), references.for_file(path))

    def _load_of_target(
        self, path: Path, model: type[OfTarget], references: References | None = None
    ) -> OfTarget:
        one = self._load(path, model, references)
        if one.target != self._target_of(path):
            raise InvalidInputError([self._wrong_folder(path, one)])
        return one

    def _targets(self) -> dict[str, Path]:
        return {path.parent.name: path for path in sorted(self.root.glob("drafts/*/target.yaml"))}

    def _files(self, folder: str) -> dict[str, Path]:
        """The declarations in a folder by their ids."""
        return {path.stem: path for path in sorted((self.root / folder).glob("*.yaml"))}

    def _target_of(self, path: Path) -> str:
        """Id of the target in whose folder a file lies; empty outside of all."""
        drafts = self.root / "drafts"
        return path.relative_to(drafts).parts[0] if path.is_relative_to(drafts) else ""

    def _wrong_folder(self, path: Path, one: Recipe | Corpus) -> Problem:
        what, folder = ("corpus", "corpora/") if path.parent.name == "corpora" else ("recipe", "")
        return Problem(
            f"the {what} is for {one.target!r} but lies in the folder of {self._target_of(path)!r}",
            self.display(path),
            None,
            "target",
            f"move the file to drafts/{one.target}/{folder}",
        )


@dataclass(slots=True)
class References:
    """What the files of a workspace may refer to, as context of their validation; each corpus is read once. What is not
    there is a `ValueError` with a fix."""

    workspace: Workspace
    target: str = ""
    """Id of the target in whose folder the referring file lies."""
    read: dict[tuple[str, str], SelfGenerated] = field(default_factory=dict)
    files: set[Path] = field(default_factory=set)
    """Files that were referred to."""

    def for_file(self, path: Path) -> References:
        """What one file may refer to."""
        return replace(self, target=self.workspace._target_of(path))

    def corpus(self, name: str) -> SelfGenerated:
        """The text of a corpus."""
        if (self.target, name) not in self.read:
            self.read[self.target, name] = self._read_corpus(name)
        return self.read[self.target, name]

    def _read_corpus(self, name: str) -> SelfGenerated:
        known = self.workspace._files(f"drafts/{self.target}/corpora")
        if name not in known:
            every = sorted(self.workspace.root.glob("drafts/*/corpora/*.yaml"))
            others = [path for path in every if path.stem == name]
            listed = f"known: {', '.join(known) or 'none'}"
            if others:
                raise ValueError(
                    f"the corpus {name!r} is {self.workspace._target_of(others[0])}'s, not {self.target}'s (fix: copy "
                    f"the file to drafts/{self.target}/corpora/, or name another corpus; {listed})"
                )
            raise ValueError(
                f"{self.target} has no corpus {name!r} (fix: `draftrank new corpus {name}`; {listed})"
            )
        from draftrank.catalog.self_generated import Corpus

        try:
            self.files.add(known[name])
            return self.workspace._load_of_target(known[name], Corpus, self).text
        except InvalidInputError as error:
            raise ValueError(
                f"the corpus {name!r} is invalid: {error.problems[0]} (fix: mend that file)"
            ) from error

    def source_of_target(self, name: str) -> SourceBase:
        """Where the weights of a target come from."""
        known = self.workspace._targets()
        if name not in known:
            raise ValueError(
                f"there is no target {name!r} (fix: write a source, or one of {', '.join(known)})"
            )
        try:
            self.files.add(known[name])
            return self.workspace.target(name).source
        except InvalidInputError as error:
            raise ValueError(
                f"the target {name!r} is invalid: {error.problems[0]} (fix: mend that file)"
            ) from error

    def lines(self, path: str) -> tuple[str, ...]:
        """The lines of a text file that are not blank."""
        from draftrank.catalog.yaml_file import MAX_BYTES

        root = self.workspace.root
        file = root / path
        if not file.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"the path {path!r} leaves the workspace (fix: copy the file into it)")
        try:
            if not file.is_file() or file.stat().st_size > MAX_BYTES:
                raise ValueError(
                    f"{path} is not a text file of at most {MAX_BYTES:,} bytes (fix: check the path, which is relative "
                    "to the workspace)"
                )
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read: {error} (fix: save it as UTF-8 text)") from error
        if unseen := unseen_in(text):
            raise ValueError(f"{path} holds the unseen character {unseen} (fix: remove it)")
        self.files.add(file)
        return tuple(line for line in text.splitlines() if line.strip())


def _named(what: str, name: str, known: Mapping[str, Path]) -> Path:
    if name not in known:
        raise InvalidInputError([_unknown(what, name, known)])
    return known[name]


def _unknown(
    what: str, name: str, known: Iterable[str], file: str | None = None, field: str | None = None
) -> Problem:
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    fix = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(set(known))) or 'none'}"
    return Problem(f"there is no {what} {name!r}", file, None, field, fix)


def _packaged_folder() -> Path:
    return Path(str(files("draftrank"))) / "_workspace"


def _is_workspace(folder: Path) -> bool:
    return (folder / "drafts").is_dir() and (folder / "tasks").is_dir()


_SQLITE = "sqlite:///"


def _state_folder(root: Path) -> Path:
    return Path(os.environ.get("DRAFTRANK_STATE") or root / ".draftrank")
