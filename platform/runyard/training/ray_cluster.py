"""Connection to a Ray cluster: a given one, this machine's, or one that we start. Imports no ray.train, no torch."""

import json
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from detector.errors import ConfigError

ENVIRONMENT = {
    # A report waits for the controller's next poll, 2 s by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Where metrics are exported and to whom is not ours to decide on a user's machine.
    "RAY_USAGE_STATS_ENABLED": "0",
}

OBJECT_STORE_BYTES = 200_000_000
"""Object store of a cluster that we start: only small results pass through it; Ray would take a third of the memory."""


LEAST_CPUS = 2
"""CPUs of a cluster that we start: the demo's two workers share a core on a machine that has one."""


def is_connected() -> bool:
    """True if this process is connected to a cluster."""
    return bool(ray.is_initialized())


def connect(runtime_env: dict[str, Any]) -> None:
    """Connect to the cluster that $RAY_ADDRESS names or this machine has, else ('local', too) starts one of our own.

    Workers' output goes to Ray's session folder: what a person should see comes through the journal.
    """
    if ray.is_initialized():
        return
    with _signal_handlers_kept():
        _connect(runtime_env)


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself: with an exit that no run is told of, then with a C++ handler that aborts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in earlier.items():
            if handler is not None:  # None: it was not set by Python, which cannot set it again
                signal.signal(signum, handler)


def _connect(runtime_env: dict[str, Any]) -> None:
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    # Ray refuses a variable that the submission has set already, even to the same value.
    own = {name: value for name, value in ENVIRONMENT.items() if name not in (submitted.get("env_vars") or {})}
    runtime_env = {**runtime_env, "env_vars": {**own, **runtime_env.get("env_vars", {})}}
    options: dict[str, Any] = {"runtime_env": runtime_env, "logging_level": logging.ERROR, "log_to_driver": False}
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        try:
            ray.init(address=address, **options)
        except ConnectionError:
            raise ConfigError("no Ray cluster answers there", field="RAY_ADDRESS", value=address) from None
        return
    cluster_of_our_own = {
        "num_cpus": max(os.cpu_count() or 1, LEAST_CPUS),
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }
    try:
        # Left to itself Ray takes what `ray start` has started here, and refuses the numbers; address 'auto' would also
        # take the cluster that another driver has started for itself and that ends with it.
        ray.init(**cluster_of_our_own, **options)
    except ValueError:
        try:
            ray.init(address="auto", **options)
        except ConnectionError:  # it was started, and is gone
            ray.init(address="local", **cluster_of_our_own, **options)
