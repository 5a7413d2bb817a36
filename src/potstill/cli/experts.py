"""`potstill experts`: train, list, verify, remove and import expert trajectories."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.cli.expert_flags import ImportFlags, RemoveFlags, StoreFlags, several
from potstill.cli.flags import parse, run_from, short
from potstill.core.errors import InputError, WorkError, unknown

if TYPE_CHECKING:
    from potstill.core.log import Console
    from potstill.methods.api import Context
    from potstill.run import Where


def experts(arguments: list[str]) -> int:
    """Make and keep expert trajectories: potstill experts train|list|verify|rm|import."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: potstill experts COMMAND ...  (potstill experts COMMAND --help says more)\n")
        for name, command in _COMMANDS.items():
            print(f"  {name:<8}{(command.__doc__ or '').splitlines()[0]}")
        return 0
    if arguments[0] not in _COMMANDS:
        raise unknown("command of experts", arguments[0], _COMMANDS)
    return _COMMANDS[arguments[0]](arguments[1:])


def _train(arguments: list[str]) -> int:
    """Train the experts that a run would use: experts train RECIPE | --data D [flags]."""
    from potstill.core.log import Console
    from potstill.data import keep_space
    from potstill.engine import Tasks
    from potstill.experts import KIND, Trajectory
    from potstill.report.pools import outcome_text
    from potstill.run import open_run_data, plan_line, preflight, resolved, stoppable

    run, found = run_from(_completed(arguments), "experts train")
    where, report, data = found.where(), Console(), open_run_data(run)
    store, run = where.open_store(), resolved(run, data)
    ctx, cost = preflight(run, data, store=store, workers=where.workers)
    first = run.method.phases(ctx, {})
    later = getattr(run.method, "asked", None) is not None  # after an encoder and its targets
    if not isinstance(first, Tasks) or not (later or first.kind == KIND):
        raise _none(run.method)
    keep_space(ctx.space)
    for line in (*data.notes, *cost.notes, plan_line(run, ctx, cost)):
        report.say(line)
    with stoppable("the same command; what is finished is kept"):
        folders = _trained(run.method, ctx, cost.disk_bytes, where, report)
    facts = [Trajectory(folder).facts for folder in folders]
    print(f"{len(facts)} experts are in the pool {folders[0].name} of {store.root}; ", end="")
    print(outcome_text(facts))
    return 0


def _trained(method: Any, ctx: Context, nbytes: int, where: Where, report: Console) -> list[Path]:
    """Do the tasks of a method up to its experts; return the folders of these."""
    from potstill.engine import Tasks, run_tasks
    from potstill.experts import KIND

    store, done = where.open_store(), dict[str, list[Path]]()
    while isinstance(tasks := method.phases(ctx, done), Tasks):
        store.need_room(tasks.kind, tasks.specs, nbytes)
        mine = {store.path(tasks.kind, spec) for spec in tasks.specs}
        if mine & {store.path(tasks.kind, spec) for spec in store.tidy(tasks.kind)}:
            report.say("Another process is making some of these; what it makes is not made again.")
        with report.phase(tasks.label, len(tasks.specs)) as advance:
            run_tasks(
                tasks,
                store,
                engine=where.engine,
                workers=where.workers,
                on_done=lambda done, total, advance=advance: advance(done),
                on_part=advance,
            )
            folders = [store.verify(tasks.kind, spec) for spec in tasks.specs]
        if tasks.kind == KIND:
            return folders
        done[tasks.phase] = folders
    raise _none(method)


def _none(method: Any) -> InputError:
    from potstill.methods import name_of

    return InputError(f"The method {name_of(method)} trains no experts.")


def _completed(arguments: list[str]) -> list[str]:
    """Write out what `experts train` need not be told: method, and ipc, which plays no part."""
    own = ("--experts.", "--teacher.")
    rest = [f"--method.{a[2:]}" if a.startswith(own) else a for a in short(arguments)]
    given = {a.split("=")[0] for a in rest}
    if rest and not rest[0].startswith("-"):
        return rest
    features = "--method.experts.objective kd_mse" in " ".join(rest).replace("=", " ")
    more = [] if "--method" in given else ["--method", "mkdt" if features else "mtt"]
    return [*rest, *more, *([] if {"--ipc", "--size"} & given else ["--ipc", "1"])]


def _list(arguments: list[str]) -> int:
    """List the experts in the store, one line for those that differ only in their index."""
    from rich.console import Console

    from potstill.experts import KIND, pools
    from potstill.report.pools import counted, pool_table, size_text

    store = parse(StoreFlags, arguments, name="experts list", text="List the experts.").open()
    store.tidy(KIND)
    found = pools(store)
    if not found:
        print(f"There are no experts in {store.root}.")
        return 0
    Console(width=None if sys.stdout.isatty() else 180).print(pool_table(found))
    count, nbytes = sum(len(p.entries) for p in found), sum(p.nbytes for p in found)
    print(
        f"{counted(count, 'expert')} in {counted(len(found), 'pool')}, {size_text(nbytes)}, "
        f"in {store.root}"
    )
    return 0


def _verify(arguments: list[str]) -> int:
    """Check every file of the experts against its recorded hash: experts verify [POOL ...]."""
    from potstill.core.log import Console
    from potstill.experts import find_pool, pools
    from potstill.report.pools import counted

    text = "Check every file of the experts against its recorded hash; all pools by default."
    names, flags = several(StoreFlags, arguments, "verify", "POOL", text)
    store = flags.open()
    found = [find_pool(store, name) for name in names] if names else pools(store)
    total, bad = sum(len(pool.entries) for pool in found), []
    with Console().phase("checking", total) as advance:
        checked = (files for pool in found for files in pool.faults())
        for done, files in enumerate(checked, 1):
            bad += [files] if files else []
            advance(done)
    for file in (file for files in bad for file in files):
        print(f"{file} is missing, truncated or altered")
    print(f"{counted(total, 'expert')} checked, {len(bad) or 'none'} of them bad")
    return 1 if bad else 0


def _remove(arguments: list[str]) -> int:
    """Remove whole pools from the store: experts rm POOL ... | --all [--dry-run]."""
    from potstill.experts import find_pool, pools, remove_pool
    from potstill.report.pools import size_text

    text = "Remove whole pools of experts from the store."
    names, flags = several(RemoveFlags, arguments, "rm", "POOL", text)
    if bool(names) == flags.all:
        raise InputError("Name the pools to remove (see potstill experts list), or give --all.")
    store, total, kept = flags.open(), 0, []
    found = {p.name: p for p in (find_pool(store, name) for name in names)}
    for pool in found.values() if names else pools(store):
        try:
            nbytes = pool.nbytes if flags.dry_run else remove_pool(store, pool)
        except InputError as error:
            kept.append(str(error))
            continue
        total += nbytes
        verb = "would be removed" if flags.dry_run else "removed"
        print(f"{pool.name}: {len(pool.entries)} experts {verb}, {size_text(nbytes)}")
    print(f"{size_text(total)} {'would be' if flags.dry_run else 'are'} free again in {store.root}")
    if kept:
        raise WorkError(f"{' '.join(kept)} What it works on is kept.")
    return 0


def _import(arguments: list[str]) -> int:
    """Take over experts of the original MTT code: experts import FILE ... --data D --net NAME."""
    from potstill.core.log import Console
    from potstill.data import make_space
    from potstill.experts import import_experts
    from potstill.nets import NetSpec, fitting

    text = (
        "Put the experts of replay_buffer_*.pt files into the store as one pool, after checking "
        "all of them; only plain tensors are read."
    )
    net = ("net", NetSpec, dataclasses.field(default=NetSpec(name="auto")))
    names, flags = several(ImportFlags, short(arguments), "import", "FILE", text, net)
    data, report = flags.images(), Console()
    with report.phase("importing", 1) as advance:
        made = import_experts(
            [Path(name) for name in names],
            data=data,
            space=make_space(flags.normaliser, data),
            net=fitting(flags.net, data.size),
            store=flags.open(),
            lr=flags.lr,
            on_done=lambda done, total: advance(done, total=total),
        )
    print(f"{made.count} experts of {made.epochs} epochs are now the pool {made.pool}; use them:")
    print(f"  --method.experts.imported {made.pool[:12]} --method.experts.count {made.count}")
    if made.accuracy is not None:
        doubt = "" if made.accuracy > 2 / data.n_classes else "; check --normaliser and the classes"
        right = f"{100 * made.accuracy:.1f} % of the validation images right"
        print(f"The first has {right} (it was most likely trained on them){doubt}.")
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "list": _list,
    "verify": _verify,
    "rm": _remove,
    "import": _import,
}
