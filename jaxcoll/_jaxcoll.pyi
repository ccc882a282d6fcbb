"""The C++ side of jaxcoll; import it through jaxcoll._native only."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import numpy
from numpy.typing import NDArray

def build_schedule(
    collective: str,
    algorithm: str,
    world_size: int,
    channels: int,
    node_size: int,
    root: int,
    permutation: Sequence[tuple[int, int]],
    rank: int,
) -> tuple[
    int,
    int,
    int,
    int,
    int,
    list[
        tuple[
            int,
            int,
            int,
            int,
            int,
            list[tuple[int, list[tuple[int, int]]]],
            tuple[int, list[tuple[int, int]]],
            list[int],
        ]
    ],
]:
    """One rank's program, as tuples."""

def schedule_algorithms(collective: str) -> list[str]:
    """Names of the algorithms of a collective."""

def serialize_schedule(
    programs: Sequence[
        tuple[
            int,
            int,
            int,
            int,
            int,
            Sequence[
                tuple[
                    int,
                    int,
                    int,
                    int,
                    int,
                    Sequence[tuple[int, Sequence[tuple[int, int]]]],
                    tuple[int, Sequence[tuple[int, int]]],
                    Sequence[int],
                ]
            ],
        ]
    ],
) -> str:
    """All ranks' programs as text."""

def parse_schedule(
    text: str,
) -> list[
    tuple[
        int,
        int,
        int,
        int,
        int,
        list[
            tuple[
                int,
                int,
                int,
                int,
                int,
                list[tuple[int, list[tuple[int, int]]]],
                tuple[int, list[tuple[int, int]]],
                list[int],
            ]
        ],
    ]
]:
    """The inverse of serialize_schedule."""

def infer_dependencies(
    program: tuple[
        int,
        int,
        int,
        int,
        int,
        Sequence[
            tuple[
                int,
                int,
                int,
                int,
                int,
                Sequence[tuple[int, Sequence[tuple[int, int]]]],
                tuple[int, Sequence[tuple[int, int]]],
                Sequence[int],
            ]
        ],
    ],
) -> tuple[
    int,
    int,
    int,
    int,
    int,
    list[
        tuple[
            int,
            int,
            int,
            int,
            int,
            list[tuple[int, list[tuple[int, int]]]],
            tuple[int, list[tuple[int, int]]],
            list[int],
        ]
    ],
]:
    """The program with the dependencies that its operands imply added."""

def kernel_reduce(
    destinations: Sequence[
        Annotated[NDArray[numpy.uint8], dict(shape=(None,), order="C", device="cpu")]
    ],
    sources: Sequence[
        Annotated[
            NDArray[numpy.uint8], dict(shape=(None,), order="C", device="cpu", writable=False)
        ]
    ],
    dtype: str,
    op: str,
    streaming: bool = False,
    isa: str | None = None,
) -> None:
    """
    Sets every destination to sources[0] op sources[1] op ..., elementwise.

    All are one-dimensional uint8 arrays of one size, views of arrays of `dtype`. A
    destination may be a source. Raises ValueError for what the kernels do not serve.
    """

def kernel_isa() -> str:
    """The instruction set that the kernels use: portable, avx2 or avx512."""

def kernel_isas() -> list[str]:
    """The instruction sets that run on this machine."""

def dtype_names() -> list[str]:
    """Every dtype that collectives take, by NumPy's name."""

def reduce_ops(dtype: str) -> list[str]:
    """The reduce ops that `dtype` has."""

def ffi_registrations() -> dict:
    """
    By platform, capsules for jax.ffi.register_ffi_target and register_ffi_type.
    """

def ffi_api_version() -> tuple:
    """The XLA FFI API version this module was compiled against."""

def engine_info() -> dict:
    """
    Worker threads now, custom-call instructions alive, deadline in seconds.
    """

def shutdown() -> None:
    """
    Fails every pending and later call; waits a few seconds for work in progress.
    """

def comm_start(process: int, process_of_device: Mapping[int, int], want: Callable) -> None:
    """
    Starts the engine between processes, once. `want(peer)` is called when it needs a link; it
    must return at once, and comm_add_*_link or comm_link_failed must follow.
    """

def comm_started() -> bool:
    """Whether comm_start has been called."""

def comm_lowering(program: str) -> None:
    """
    A program of this fingerprint is being lowered: its instructions count from zero.
    """

def comm_bell() -> int:
    """The eventfd that wakes this process's engine; it stays the engine's."""

def comm_make_segment() -> int:
    """A memfd for one link: what the peer writes for this process."""

def comm_add_shm_link(
    peer: int, socket: int, own_segment: int, peer_segment: int, peer_bell: int, description: str
) -> None:
    """Takes over the descriptors."""

def comm_add_tcp_link(peer: int, sockets: Sequence[int], description: str) -> None:
    """Takes over the descriptors."""

def comm_link_failed(peer: int, reason: str) -> None:
    """No link will come: fails what waits for the peer."""

def comm_dump() -> str:
    """
    What this process has been doing with others, for people; empty before comm_start.
    """

def comm_stop() -> None:
    """
    Fails what is pending, sends what is queued (3 s at most) and ends the thread.
    """

comm_window_bytes: int = 3145728

cuda_built: bool = True

def cuda_info() -> dict:
    """
    What CUDA offers here, the communicators there are, and why kernels have given up.
    """

def cuda_start(
    process: int,
    devices: Sequence[tuple[int, int, int]],
    max_blocks: int,
    workspace_mib: int,
    publish: Callable | None,
    fetch: Callable | None,
) -> None:
    """
    Says once which GPUs the job has, as (device id, process, ordinal in the process), and how
    its processes exchange bytes: publish(key, value), fetch(key, timeout_s); None if alone.
    """

def cuda_started() -> bool:
    """Whether cuda_start has been called."""

def cuda_stop() -> None:
    """Ends the thread that reports why kernels have given up."""

class CudaHarness:
    """N ranks on one device: for tests and benchmarks."""

    @staticmethod
    def create(
        collective: str,
        algorithm: str,
        reduce_op: str,
        ranks: int,
        root: int,
        permutation: Sequence[int],
        inputs: Sequence[tuple[str, Sequence[int]]],
        outputs: Sequence[tuple[str, Sequence[int]]],
        streams: bool,
        staged: bool,
        max_blocks: int,
        timeout_s: float,
        workspace_mib: int,
    ) -> (
        "std::unique_ptr<jaxcoll::cuda::Harness, std::default_delete<jaxcoll::cuda::Harness> >"
    ): ...
    @property
    def blocks(self) -> int: ...
    def run(
        self, inputs: Sequence[Sequence[bytes]], calls: int, leave_out: int
    ) -> list[list[bytes]]:
        """
        inputs[rank][operand] -> outputs[rank][result] of the last of `calls` calls.
        """

    def time(self, chain: int, samples: int, rotate_bytes: int) -> list[float]:
        """Seconds of one call, from replays of graphs of `chain` calls."""

    def causes(self) -> list[str]: ...

def cuda_copy_bandwidth(bytes: int, samples: int) -> float:
    """Bytes read plus written per second by a device-to-device copy."""

def cuda_device() -> dict:
    """The first GPU."""
