"""Arrays that JAX has spread over devices, as x0."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
import lbfgs_xp as lx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
jax.config.update("jax_enable_x64", True)
spread = NamedSharding(Mesh(np.array(jax.devices()), ("d",)), PartitionSpec("d"))
centres, scales = jnp.linspace(-1.0, 1.0, 64), jnp.arange(1.0, 65.0)

@jax.jit
def fun(x, c):
    return ((x - c) ** 2 * scales).sum() + ((x - c) ** 4).sum()

whole = lx.minimize(fun, jnp.zeros(64), (centres,))
res = lx.minimize(fun, jax.device_put(jnp.zeros(64), spread), (jax.device_put(centres, spread),))
assert len(res.x.sharding.device_set) == 2, res.x.sharding
assert res.success and (res.nit, res.nfev) == (whole.nit, whole.nfev)
assert float(jnp.max(jnp.abs(res.x - whole.x))) < 1e-10
print("done")
"""


@pytest.mark.thorough
def test_sharded_arrays_as_they_come() -> None:
    pytest.importorskip("jax")
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    environment = {
        **os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False,
        env=environment, timeout=300,
    )
    assert done.stdout == "done\n", done.stderr
