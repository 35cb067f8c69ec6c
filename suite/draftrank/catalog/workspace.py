"""A workspace on disk: any folder with `drafts/` and `tasks/`, and the state kept beside them.

The forms of declarations are imported when one is read: commands that show results read none, and the union of all kinds
takes longer to import than they take altogether.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from draftrank.catalog.base import Declared
from draftrank.catalog.plain_text import unseen_in
from draftrank.errors import InvalidInputError, MissingDataError, Problem
from draftrank.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from draftrank.catalog.prompts import TaskPrompts
    from draftrank.catalog.recipe import Recipe
    from draftrank.catalog.self_generated import Corpus, SelfGenerated
    from draftrank.catalog.server import Server
    from draftrank.catalog.sources.base import FetchContext, SourceBase
    from draftrank.catalog.target import Target
    from draftrank.catalog.task import Suite, Task

T = TypeVar("T", bound=Declared)


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

    def fetch_context(self, progress: Progress | None = None) -> FetchContext:
        """What sources need to fetch on this workspace's behalf."""
        from draftrank.catalog.sources.base import FetchContext

        data = os.environ.get("DRAFTRANK_DATA", "")
        roots = (self.root, *(Path(entry).resolve() for entry in data.split(os.pathsep) if entry))
        offline = os.environ.get("DRAFTRANK_OFFLINE", "") not in ("", "0")
        return FetchContext(self.cache, roots, offline, progress or SilentProgress(), self.shared_drafts)

    def display(self, path: Path) -> str:
        """A path as shown to people: relative to the workspace where it lies inside."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    # -- paths of declarations -------------------------------------------------------------------

    def target_paths(self) -> list[Path]:
        """All target files, sorted."""
        return sorted((self.root / "drafts").glob("*/target.yaml"))

    def recipe_paths(self, target: str | None = None) -> list[Path]:
        """All recipe files, of one target or of all, sorted."""
        found = (self.root / "drafts").glob(f"{target or '*'}/*.yaml")
        return sorted(path for path in found if path.name != "target.yaml")

    def corpus_paths(self, target: str | None = None) -> list[Path]:
        """All corpus files, of one target or of all, sorted."""
        return sorted((self.root / "drafts").glob(f"{target or '*'}/corpora/*.yaml"))

    def task_paths(self) -> list[Path]:
        """All task files, sorted."""
        return sorted((self.root / "tasks").glob("*.yaml"))

    def suite_paths(self) -> list[Path]:
        """All suite files, sorted."""
        return sorted((self.root / "tasks" / "suites").glob("*.yaml"))

    def server_paths(self) -> list[Path]:
        """All server files, sorted."""
        return sorted((self.root / "tasks" / "servers").glob("*.yaml"))

    def declaration_paths(self) -> list[tuple[Path, type[Declared]]]:
        """Every declaration of the workspace with the model it must satisfy."""
        from draftrank.catalog.recipe import Recipe
        from draftrank.catalog.self_generated import Corpus
        from draftrank.catalog.server import Server
        from draftrank.catalog.target import Target
        from draftrank.catalog.task import Suite, Task

        return (
            [(path, Target) for path in self.target_paths()]
            + [(path, Task) for path in self.task_paths()]
            + [(path, Suite) for path in self.suite_paths()]
            + [(path, Server) for path in self.server_paths()]
            + [(path, Corpus) for path in self.corpus_paths()]
            + [(path, Recipe) for path in self.recipe_paths()]
        )

    # -- loading ---------------------------------------------------------------------------------

    def target(self, target_id: str) -> Target:
        """One target.

        Raises:
            InvalidInputError: it does not exist or is invalid.
        """
        from draftrank.catalog.target import Target

        known = [path.parent.name for path in self.target_paths()]
        self._require("target", target_id, known)
        return self._load(self.root / "drafts" / target_id / "target.yaml", Target)

    def recipe(self, target_id: str, draft_id: str) -> Recipe:
        """One recipe of a target, with the texts of the corpora it names; raises as `target`."""
        from draftrank.catalog.recipe import Recipe

        known = [path.stem for path in self.recipe_paths(target_id)]
        self._require("draft", draft_id, known)
        path = self.root / "drafts" / target_id / f"{draft_id}.yaml"
        recipe = self._load(path, Recipe)
        if recipe.target != target_id:
            raise InvalidInputError([self._wrong_folder(path, recipe)])
        return recipe

    def corpus(self, target_id: str, corpus_id: str) -> Corpus:
        """One corpus of a target; raises as `target`."""
        self._require("corpus", corpus_id, [path.stem for path in self.corpus_paths(target_id)])
        path = self.root / "drafts" / target_id / "corpora" / f"{corpus_id}.yaml"
        return self._load_corpus(path, _WorkspaceReferences(self))

    def files_of_recipe(self, target_id: str, draft_id: str) -> tuple[Path, ...]:
        """A recipe's file, then the files that it needs: corpora and prompt prefixes, sorted; raises as `target`."""
        from draftrank.catalog.recipe import Recipe

        references = _WorkspaceReferences(self)
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
        self._require("draft", draft_id, [path.stem for path in self.recipe_paths()])
        return self.recipe(targets[0], draft_id)

    def task(self, task_id: str) -> Task:
        """One task; raises as `target`."""
        from draftrank.catalog.task import Task

        self._require("task", task_id, [path.stem for path in self.task_paths()])
        return self._load(self.root / "tasks" / f"{task_id}.yaml", Task)

    def suite(self, suite_id: str) -> Suite:
        """One suite; raises as `target`."""
        from draftrank.catalog.task import Suite

        self._require("suite", suite_id, [path.stem for path in self.suite_paths()])
        return self._load(self.root / "tasks" / "suites" / f"{suite_id}.yaml", Suite)

    def server(self, server_id: str) -> Server:
        """One server; raises as `target`."""
        from draftrank.catalog.server import Server

        self._require("server", server_id, [path.stem for path in self.server_paths()])
        return self._load(self.root / "tasks" / "servers" / f"{server_id}.yaml", Server)

    def prompts(
        self, suite: Suite, progress: Progress | None = None
    ) -> tuple[list[TaskPrompts], dict[str, str]]:
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
        wanted = {path.resolve() for path in paths} if paths else None

        references = _WorkspaceReferences(self)

        def load_all(found: list[Path], model: type[T]) -> list[tuple[Path, T]]:
            loaded = []
            for path in found:
                try:
                    loaded.append((path, self._load(path, model, references)))
                except InvalidInputError as error:
                    problems.extend(error.problems)
            return loaded

        targets = load_all(self.target_paths(), Target)
        tasks = load_all(self.task_paths(), Task)
        suites = load_all(self.suite_paths(), Suite)
        servers = load_all(self.server_paths(), Server)
        corpora = load_all(self.corpus_paths(), Corpus)
        recipes = load_all(self.recipe_paths(), Recipe)
        target_ids = [path.parent.name for path in self.target_paths()]
        task_ids = [path.stem for path in self.task_paths()]
        of_targets: list[tuple[Path, Corpus | Recipe]] = [*corpora, *recipes]
        for path, one in of_targets:
            if one.target not in target_ids:
                problems.append(_unknown("target", one.target, target_ids, self.display(path), "target"))
            elif one.target != self._target_of(path):
                problems.append(self._wrong_folder(path, one))
        for path, suite in suites:
            for index, entry in enumerate(suite.tasks):
                if entry.task not in task_ids:
                    problems.append(
                        _unknown("task", entry.task, task_ids, self.display(path), f"tasks.{index}.task")
                    )
        for path, task in tasks:
            problems.extend(self._check_local_data(path, task))
        if wanted is not None:
            shown = {self.display(path) for path in wanted}
            problems = [problem for problem in problems if problem.file in shown]
        return Checked(
            tuple(target for _, target in targets),
            tuple(task for _, task in tasks),
            tuple(suite for _, suite in suites),
            tuple(server for _, server in servers),
            tuple(corpus for _, corpus in corpora),
            tuple(recipe for _, recipe in recipes),
            tuple(problems),
        )

    def _check_local_data(self, path: Path, task: Task) -> list[Problem]:
        """Reads task data that needs no fetching, so that `check` sees a bad file at once."""
        from draftrank.catalog.prompts import read_prompts

        if task.source.kind not in ("local", "inline"):  # type: ignore[attr-defined]
            return []
        try:
            read_prompts(task, self.fetch_context())
        except MissingDataError:
            return []
        except InvalidInputError as error:
            return [
                Problem(
                    problem.message
                    if problem.file is None
                    else f"{problem.file}:{problem.line or ''} {problem.message}",
                    self.display(path),
                    None,
                    problem.field or "source",
                    problem.fix,
                )
                for problem in error.problems
            ]
        return []

    def _load(self, path: Path, model: type[T], references: _WorkspaceReferences | None = None) -> T:
        from draftrank.catalog.loading import load_declaration

        references = references or _WorkspaceReferences(self)
        return load_declaration(path, model, self.display(path), references.for_file(path))

    def _load_corpus(self, path: Path, references: _WorkspaceReferences) -> Corpus:
        from draftrank.catalog.self_generated import Corpus

        corpus = self._load(path, Corpus, references)
        if corpus.target != self._target_of(path):
            raise InvalidInputError([self._wrong_folder(path, corpus)])
        return corpus

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

    def _require(self, what: str, name: str, known: list[str]) -> None:
        if name not in known:
            raise InvalidInputError([_unknown(what, name, known)])


@dataclass(slots=True)
class _WorkspaceReferences:
    """What the files of a workspace may refer to; each corpus is read once."""

    workspace: Workspace
    target: str = ""
    """Id of the target in whose folder the referring file lies."""
    read: dict[tuple[str, str], SelfGenerated] = field(default_factory=dict)
    files: set[Path] = field(default_factory=set)
    """Files that were referred to."""

    def for_file(self, path: Path) -> _WorkspaceReferences:
        """What one file may refer to."""
        return replace(self, target=self.workspace._target_of(path))

    def corpus(self, name: str) -> SelfGenerated:
        """See `References.corpus`."""
        if (self.target, name) not in self.read:
            self.read[self.target, name] = self._read_corpus(name)
        return self.read[self.target, name]

    def _read_corpus(self, name: str) -> SelfGenerated:
        known = [path.stem for path in self.workspace.corpus_paths(self.target)]
        if name not in known:
            others = [path for path in self.workspace.corpus_paths() if path.stem == name]
            listed = f"known: {', '.join(known) or 'none'}"
            if others:
                raise ValueError(
                    f"the corpus {name!r} is {self.workspace._target_of(others[0])}'s, not {self.target}'s (fix: copy "
                    f"the file to drafts/{self.target}/corpora/, or name another corpus; {listed})"
                )
            raise ValueError(
                f"{self.target} has no corpus {name!r} (fix: `draftrank new corpus {name}`; {listed})"
            )
        try:
            path = self.workspace.root / "drafts" / self.target / "corpora" / f"{name}.yaml"
            self.files.add(path)
            return self.workspace._load_corpus(path, self).text
        except InvalidInputError as error:
            raise ValueError(
                f"the corpus {name!r} is invalid: {error.problems[0]} (fix: mend that file)"
            ) from error

    def source_of_target(self, name: str) -> SourceBase:
        """See `References.source_of_target`."""
        path = self.workspace.root / "drafts" / name / "target.yaml"
        known = [found.parent.name for found in self.workspace.target_paths()]
        if name not in known:
            raise ValueError(
                f"there is no target {name!r} (fix: write a source, or one of {', '.join(known)})"
            )
        try:
            self.files.add(path)
            return self.workspace.target(name).source
        except InvalidInputError as error:
            raise ValueError(
                f"the target {name!r} is invalid: {error.problems[0]} (fix: mend that file)"
            ) from error

    def lines(self, path: str) -> tuple[str, ...]:
        """See `References.lines`."""
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


def _unknown(
    what: str, name: str, known: list[str], file: str | None = None, field: str | None = None
) -> Problem:
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    fix = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(set(known))) or 'none'}"
    return Problem(f"there is no {what} {name!r}", file, None, field, fix)


def _packaged_folder() -> Path:
    return Path(str(files("draftrank"))) / "_workspace"


def _is_workspace(folder: Path) -> bool:
    return (folder / "drafts").is_dir() and (folder / "tasks").is_dir()


_SQLITE = "sqlite:///"


def _state_folder(root: Path) -> Path:
    return Path(os.environ.get("DRAFTRANK_STATE") or root / ".draftrank")
