"""One of the processes of `test_processes.py`: process.py RANK SIZE STORE CASE ...

It prints what it found as one line of JSON; a process of MPI, whose lines mpirun may mix with those
of others, writes it into the file STORE.rank.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import lbfgs_xp as lx

warnings.simplefilter("ignore")
RANK, SIZE, STORE, *CASES = sys.argv[1:]


def engine(sharded: bool = False) -> Any:
    if RANK == "mpi":
        return lx.distributed.mpi(sharded=sharded)
    import torch

    torch.set_num_threads(1)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{STORE}", rank=int(RANK), world_size=int(SIZE)
        )
    return lx.distributed.torch(sharded=sharded)


def solve_sharded(case: str) -> dict[str, Any]:
    """A run whose variables are divided among the processes, by library and method."""
    team, (_, library, *rest) = engine(sharded=True), case.split()
    dtype = "float32" if "float32" in rest else "float64"
    ends = np.linspace(0, 30, team.size + 1).astype(int) - [0, *[1] * (team.size - 1), 0]
    here = slice(ends[team.rank], ends[team.rank + 1])
    scales, centres = (a[here] for a in np.random.default_rng(0).random((2, 30), dtype=dtype))
    calls, last = 0, team.rank == team.size - 1 == 1
    how: dict[str, Any] = {"reproducible": "order" in rest}
    if "adam" in rest:
        how |= {"method": lx.Adam(0.05, clip_norm=1.0), "maxiter": 30}
    if "bounds" in rest:
        how |= {"bounds": (0.2, 0.6)}

    def fun(x: Any) -> Any:
        nonlocal calls
        calls += 1
        if last and calls == 4 and "interrupt" in rest:
            os.kill(os.getpid(), signal.SIGINT)
        if last and calls == 4 and "error" in rest:
            raise ZeroDivisionError("one of us")
        if last and calls == 4 and "terminated" in rest:
            os.kill(os.getpid(), signal.SIGTERM)
        d = x - centres
        terms = scales * (d * d) + d * d * d * d
        if library == "torch":
            return terms.sum()
        total = team.fixed_sum(terms) if "order" in rest else terms.sum()
        value = total if team.rank == 0 or "order" not in rest else 0.0
        return value, 2.0 * (scales * d) + 4.0 * (d * d * d)

    def callback(record: lx.Record) -> None:
        if last and "later" in rest and record.nit == 3:
            os.kill(os.getpid(), signal.SIGINT)

    start = np.zeros(here.stop - here.start, dtype)
    if library == "torch":
        import torch

        scales, centres, start = map(torch.tensor, (scales, centres, start))
    how |= {"jac": None if library == "torch" else True, "distributed": team}
    if "terminated" in rest or "again" in rest:
        how["checkpoint"] = lx.Checkpoint(f"{STORE}.npz")
    res = lx.minimize(fun, start, callback=callback, **how)
    product = res.hess_inv @ res.x if res.hess_inv is not None else res.x
    return {
        "status": res.status.name, "fun": float(res.fun), "nit": res.nit, "nfev": res.nfev,
        "x": np.concatenate(team.gather(np.asarray(res.x))).tolist(),
        "product": np.concatenate(team.gather(np.asarray(product))).tolist(),
    }


def solve(team: Any, case: str) -> lx.Result:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(40, 6))[team.rank :: team.size]
    signs = np.sign(generator.normal(size=40))[team.rank :: team.size]
    calls, last = 0, team.rank == team.size - 1 == 1
    start = np.zeros((3, 6) if case == "batch" else 6)

    def one(x: np.ndarray) -> tuple[Any, np.ndarray]:
        z = -signs * (rows @ x)
        value = np.sum(np.logaddexp(0.0, z)) + 0.05 / team.size * (x @ x)
        return value, rows.T @ (-signs / (1.0 + np.exp(-z))) + 0.1 / team.size * x

    def fun(x: np.ndarray) -> tuple[Any, np.ndarray]:
        nonlocal calls
        calls += 1
        if last and calls == 5:
            if case == "error":
                raise ZeroDivisionError("one of us")
            if case == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if case == "ctrl-c":
                raise KeyboardInterrupt
        if last and case == "late":
            time.sleep(0.05)
        if case == "batch":
            values, gradients = zip(*map(one, x), strict=True)
            return np.stack(values), np.stack(gradients)
        value, gradient = one(x)
        return x.dtype.type(value), gradient.astype(x.dtype)

    def callback(record: lx.Record) -> bool:
        if last and case == "callback error" and record.nit == 3:
            raise ValueError("the callback")
        return last and case == "callback" and record.nit == 3

    how: dict[str, Any] = {"jac": True}
    if case == "torch":
        import torch

        data, wanted = torch.tensor(rows), torch.tensor(signs)

        def loss(x: Any) -> Any:
            z = torch.nn.functional.softplus(-wanted * (data @ x)).sum()
            return z + 0.05 / team.size * (x @ x)

        return lx.minimize(loss, torch.zeros(6, dtype=torch.float64), distributed=team)
    if case == "batch":
        how |= {"batched": True, "method": "lbfgs"}
        start += np.arange(3.0)[:, None]
    if case == "bounds":
        how["bounds"] = (-0.1, 0.2)
    if case == "float32":
        start = start.astype(np.float32)
    if case == "late":
        how["maxtime"] = 0.2
    if case.startswith("callback"):
        how["callback"] = callback
    if case == "x0":
        start = start + team.rank
    if case == "settings":
        how["gtol"] = 1e-3 * (1.0 + team.rank)
    return lx.minimize(fun, start, distributed=team, **how)


def train_with_ddp(team: Any) -> dict[str, Any]:
    """A module in DistributedDataParallel, which averages gradients; the closure averages the loss.
    """
    import torch

    from lbfgs_xp.torch import LBFGS, train_with_lbfgs

    torch.manual_seed(0)
    inputs = torch.linspace(-1.0, 1.0, 24, dtype=torch.float64)[:, None]
    wanted = torch.sin(3.0 * inputs)
    mine = slice(team.rank, None, team.size)
    net = torch.nn.Sequential(
        torch.nn.Linear(1, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)
    ).double()
    model = torch.nn.parallel.DistributedDataParallel(net)
    optimizer = LBFGS(model.parameters(), line_search_fn="strong_wolfe", max_iter=10)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = ((model(inputs[mine]) - wanted[mine]) ** 2).mean()
        loss.backward()
        mean = loss.detach().clone()
        torch.distributed.all_reduce(mean)
        return mean / team.size

    losses = [float(optimizer.step(closure)) for _ in range(3)]
    weights = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    try:
        train_with_lbfgs(model, torch.nn.MSELoss(), (inputs, wanted))
        refused = ""
    except TypeError as error:
        refused = str(error)
    return {"losses": losses, "x": weights.tolist(), "refused": refused}


def train_in_processes(team: Any, case: str) -> dict[str, Any]:
    """`train_with_lbfgs`: each process has its rows, of another number, and the model may be in
    DistributedDataParallel, whose own sums of gradients must not interfere."""
    import torch

    from lbfgs_xp.torch import train_with_lbfgs

    torch.manual_seed(team.rank if "ddp" in case else 0)
    net = torch.nn.Sequential(
        torch.nn.Linear(1, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)
    ).double()
    inputs = torch.linspace(-1.0, 1.0, 24, dtype=torch.float64)[:, None]
    wanted = torch.sin(3.0 * inputs)
    here = slice(0, 24) if team.size == 1 else slice(9) if team.rank else slice(9, 24)
    model, calls = net, 0
    if "ddp" in case:
        model = torch.nn.parallel.DistributedDataParallel(net)
        # From now on its hooks wait for a backward pass.
        model(inputs).sum()

    def loss(output: Any, target: Any) -> Any:
        nonlocal calls
        calls += 1
        if team.rank == 1 and calls == 9 and "interrupt" in case:
            os.kill(os.getpid(), signal.SIGINT)
        return ((output - target) ** 2).mean()

    res = train_with_lbfgs(
        model, loss, (inputs[here], wanted[here]), adam_steps=10, adam_lr=0.01, max_epochs=3,
        max_iter=8, tol=0.0, chunk_size=4, reduction="mean", distributed=team,
    )
    weights = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    return {"loss": res.loss, "status": res.status.name, "x": weights.tolist()}


def with_dtensors(team: Any) -> dict[str, Any]:
    """DTensors are refused as x0 and as values; their pieces are variables."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (team.size,))
    whole = torch.arange(7.0, dtype=torch.float64)
    spread = distribute_tensor(whole, mesh, [Shard(0)])
    refused = []
    for x0, fun in (
        (spread, lambda x: (x * x).sum()),
        (whole, lambda x: (DTensor.from_local(x, mesh, [Shard(0)]) ** 2).sum()),
    ):
        try:
            lx.minimize(fun, x0)
        except TypeError as error:
            refused.append(str(error))
    res = lx.minimize(
        lambda x: ((x - 2.0) ** 2).sum(), spread.to_local().clone(), distributed=engine(True)
    )
    return {"refused": refused, "x": [float(x) for x in res.x], "fun": float(res.fun)}


def report(team: Any, case: str) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        if case.startswith("sharded"):
            return solve_sharded(case)
        if case.startswith("train"):
            return train_in_processes(team, case)
        if case in ("ddp", "dtensor"):
            return train_with_ddp(team) if case == "ddp" else with_dtensors(team)
        res = solve(team, case)
    except BaseException as error:
        return {
            "error": f"{type(error).__name__}: {error}", "has_result": hasattr(error, "result"),
            "seconds": time.perf_counter() - began,
        }
    numbers = {"x": res.x, "fun": res.fun, "nit": res.nit, "nfev": res.nfev}
    return {
        "status": res.status.name if case != "batch" else res.status.tolist(),
        **{name: np.asarray(value).tolist() for name, value in numbers.items()},
    }


if __name__ == "__main__":
    TEAM = engine()
    FOUND = json.dumps({case: report(TEAM, case) for case in CASES})
    if RANK == "mpi":
        Path(f"{STORE}.{TEAM.rank}").write_text(FOUND, encoding="utf-8")
    else:
        print(FOUND, flush=True)
        os._exit(0)    # without waiting for processes that are gone
