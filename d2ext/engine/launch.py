"""Starting the processes of a run: one, several spawned here, or those a launcher started."""

import logging
import os
import random
import re
import signal
import socket
import sys
import threading
from datetime import timedelta
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Tuple

import torch
from detectron2.utils import comm
from torch import distributed as dist
from torch import multiprocessing as mp

from .errors import LostProcessError, expected_error
from .output_lock import release_kept_locks

__all__ = ["Place", "launch", "place_from_environment"]

logger = logging.getLogger(__name__)

_TIMEOUT = timedelta(minutes=30)
_PATIENCE = 5.0  # seconds after a time-out
# Each says which GPUs a process may see.
_GPU_LISTS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


class Place(NamedTuple):
    """Where a process stands among all processes of a run."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    url: str


def launch(
    main: Callable,
    num_gpus_per_machine: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: Optional[str] = "auto",
    args: Tuple = (),
    timeout: timedelta = _TIMEOUT,
    device: str = "cuda",
) -> Optional[int]:
    """Like ``detectron2.engine.launch``, and under torchrun and Slurm too.

    * Under torchrun or ``srun`` this process is one of several: it takes its place from the
      environment, and the arguments about processes are ignored.
    * Otherwise ``num_gpus_per_machine`` processes are spawned here, if it is above 1.

    Processes talk through NCCL on GPUs, each on one of its own, and through gloo on CPUs.

    Args:
        main: called as ``main(*args)`` in every process; may return an exit code.
        num_gpus_per_machine: processes on this machine; on a machine without GPUs as well.
        num_machines: machines in the run.
        machine_rank: this machine's number.
        dist_url: where rank 0 listens; "auto": a free port of this machine.
        args: the arguments of ``main``.
        timeout: how long processes wait for each other before they give up. A process that has
            ended is noticed at once on CPUs; on GPUs, after this time at the latest.
        device: where the model will be; "cpu" leaves the GPUs of a machine alone.

    Returns:
        The highest exit code of the processes started here; None or 0 is success.
    """
    place = place_from_environment(os.environ)
    if place is not None:
        return _run(main, args, place, timeout, device, launched=True)
    if num_machines == 1 and "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        logger.warning(
            "RANK and WORLD_SIZE are ignored, because without LOCAL_RANK they are not torchrun's; "
            "if they count machines, pass --num-machines $WORLD_SIZE --machine-rank $RANK."
        )
    if num_gpus_per_machine * num_machines <= 1:
        return _call(main, args)
    if dist_url is None or dist_url == "auto":
        if num_machines > 1:
            raise ValueError("--dist-url auto finds a port on one machine; name the URL of rank 0.")
        dist_url = f"tcp://127.0.0.1:{free_port()}"
    if num_gpus_per_machine == 1:
        place = Place(machine_rank, num_machines, 0, 1, dist_url)
        return _run(main, args, place, timeout, device)
    machines = (num_gpus_per_machine, num_machines, machine_rank)
    return _spawn(main, args, *machines, dist_url, timeout, device)


def place_from_environment(env: Mapping[str, str]) -> Optional[Place]:
    """This process's place if torchrun or ``srun`` started it among several, else None."""
    # Without LOCAL_RANK the others may count machines, as Kubeflow's PyTorchJob sets them.
    if all(key in env for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "LOCAL_RANK")):
        world_size = int(env["WORLD_SIZE"])
        place = Place(
            int(env["RANK"]),
            world_size,
            int(env["LOCAL_RANK"]),
            int(env.get("LOCAL_WORLD_SIZE", world_size)),
            "env://",
        )
        return place if world_size > 1 else None
    # Only a job *step* has this one: in a batch script itself there is one process, whatever
    # SLURM_NTASKS says.
    world_size = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
    if world_size <= 1 or "SLURM_PROCID" not in env:
        return None
    nodes = int(env.get("SLURM_STEP_NUM_NODES", "1"))
    host = env.get("MASTER_ADDR") or first_slurm_host(env["SLURM_STEP_NODELIST"])
    # The same port for all processes of a step, another one for another job.
    port = env.get("MASTER_PORT") or 20000 + int(env.get("SLURM_JOB_ID", "0")) % 20000
    return Place(
        int(env["SLURM_PROCID"]),
        world_size,
        int(env["SLURM_LOCALID"]),
        world_size // nodes,
        f"tcp://{host}:{port}",
    )


def first_slurm_host(node_list: str) -> str:
    """The first host of a Slurm node list such as ``gpu[07-09,12],cpu3``."""
    match = re.match(r"^([^\[,]+)(?:\[(\d+)[^\]]*\])?([^,]*)", node_list)
    if match is None:
        raise ValueError(f"SLURM_STEP_NODELIST '{node_list}' is not understood; set MASTER_ADDR.")
    return match.group(1) + (match.group(2) or "") + (match.group(3) or "")


def _choose_gpu(place: Place, launched: bool) -> int:
    """The number of a process's GPU."""
    count = torch.cuda.device_count()
    if launched and count == 1 and any(os.environ.get(name) for name in _GPU_LISTS):
        return 0  # it sees one alone, as with Slurm's --gpus-per-task 1
    if place.local_world_size > count:
        raise RuntimeError(
            f"{place.local_world_size} processes were asked for on a machine with {count} GPU(s); "
            "start fewer (--num-gpus, torchrun's --nproc-per-node, Slurm's --ntasks-per-node), "
            "or set MODEL.DEVICE to cpu."
        )
    return place.local_rank


def _run(
    main: Callable,
    args: Tuple,
    place: Place,
    timeout: timedelta,
    device: str,
    launched: bool = False,
) -> Optional[int]:
    """Join the group of processes, then call ``main``."""
    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(_choose_gpu(place, launched))
    _join(place, timeout, "nccl" if on_gpu else "gloo")
    try:
        comm.create_local_process_group(place.local_world_size)
        # Without it the first collective call may meet a process that is not ready.
        comm.synchronize()
        return _call(main, args)
    finally:
        dist.destroy_process_group()
        # Detectron2 keeps the group of a machine in here, and refuses to make a second one. It has
        # caches, too: in the next group it would wait for this one's processes for ever.
        comm._LOCAL_PROCESS_GROUP = None
        comm.create_local_process_group.cache_clear()
        comm._get_global_gloo_group.cache_clear()


def _join(place: Place, timeout: timedelta, backend: str) -> None:
    """Join the group of processes, or end this one with a sentence."""
    # Torch's own time-out does not always work if the server is not one of ours.
    seconds = timeout.total_seconds() + _PATIENCE
    watchdog = threading.Timer(seconds, lambda: os._exit(_cannot_join(place, "no answer")))
    watchdog.daemon = True
    watchdog.start()
    try:
        dist.init_process_group(
            backend,
            **_meeting_place(place, timeout),
            world_size=place.world_size,
            rank=place.rank,
            timeout=timeout,
        )
    except (RuntimeError, OSError) as error:
        sys.exit(_cannot_join(place, str(error).strip().splitlines()[0].split(". ")[0]))
    finally:
        watchdog.cancel()


def _cannot_join(place: Place, reason: str) -> int:
    """Say so; returns the exit code."""
    where = place.url
    if where == "env://":
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    print(
        f"Process {place.rank} of {place.world_size} cannot meet the others at {where} ({reason}); "
        "does another program use the port, or does rank 0 not run? Choose another port with "
        "--dist-url (torchrun's --master-port), the same for all.",
        file=sys.stderr,
        flush=True,
    )
    return 1


def _meeting_place(place: Place, timeout: timedelta) -> Dict[str, Any]:
    """Where processes find each other, as arguments of ``init_process_group``.

    When torchrun starts all processes of a machine again, its store still has the addresses of the
    dead ones, which the first to look would try to connect to: so each life has names of its own.
    On several machines torchrun counts the lives apart.
    """
    life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if place.url != "env://" or life == "0" or place.world_size != place.local_world_size:
        return {"init_method": place.url}
    store, _, _ = next(dist.rendezvous(place.url, place.rank, place.world_size, timeout=timeout))
    return {"store": dist.PrefixStore(f"life_{life}", store)}


def _call(main: Callable, args: Tuple) -> Optional[int]:
    try:
        return main(*args)
    except Exception as error:
        expected = expected_error(error)
        if expected is None:
            raise
        logged = bool(logging.getLogger("d2ext").handlers)
        if logged:
            logger.error(str(expected))
        if logged and not _is_silenced(args):
            return expected.exit_code
        if comm.is_main_process() or isinstance(expected, LostProcessError):
            print(expected, file=sys.stderr, flush=True)  # it ended before there was a log
        return expected.exit_code
    finally:
        release_kept_locks()


def _is_silenced(args: Tuple) -> bool:
    """Whether the log goes unread: ``d2ext train --quiet`` or ``--json``."""
    return any(getattr(a, "quiet", False) or getattr(a, "json", False) for a in args)


def _worker(
    local_rank: int,
    main: Callable,
    args: Tuple,
    place: Dict[str, Any],
    timeout: timedelta,
    codes: Any,
) -> None:
    local = place["local_world_size"]
    rank = place["machine_rank"] * local + local_rank
    own = Place(rank, place["world_size"], local_rank, local, place["url"])
    codes[local_rank] = _run(main, args, own, timeout, place["device"]) or 0


def _spawn(
    main: Callable,
    args: Tuple,
    count: int,
    num_machines: int,
    machine_rank: int,
    url: Optional[str],
    timeout: timedelta,
    device: str,
) -> int:
    """Start ``count`` processes, pass signals on to them, and wait."""
    place = {
        "world_size": count * num_machines,
        "local_world_size": count,
        "machine_rank": machine_rank,
        "url": url,
        "device": device,
    }
    codes = mp.get_context("spawn").Array("i", count)
    # The exit code travels through shared memory: a child that *exited* with one would make
    # torch end its siblings, which may still be writing the checkpoint.
    context = mp.start_processes(
        _worker,
        nprocs=count,
        args=(main, args, place, timeout, codes),
        join=False,
        start_method="spawn",
    )

    def pass_on(number: int, frame: Any) -> None:
        for process in context.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    previous = {n: signal.signal(n, pass_on) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        while not context.join(timeout=1):
            pass
    except mp.ProcessExitedException as error:
        # Ended by a second signal, or by the system.
        return error.exit_code if error.exit_code > 0 else 128 - error.exit_code
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return max(codes[:])


def free_port() -> int:
    """A free port below those the system hands out itself: another program could get one of
    those before our processes have started. Seeds do not change it, as two runs must not meet."""
    ports = random.SystemRandom()
    for _ in range(100):
        port = ports.randrange(20000, 32000)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            try:
                sock.bind(("", port))
            except OSError:
                continue
            return port
    raise RuntimeError("No free port between 20000 and 32000; name one with --dist-url.")
