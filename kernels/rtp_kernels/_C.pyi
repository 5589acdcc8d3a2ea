"""The compiled module. Kept by hand; a test compares the names with the module's own."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

class Array(Protocol):
    """A CPU tensor of any library that speaks DLPack."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...

def isa() -> str: ...
def supported_isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
def num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...
def array(address: int, shape: Sequence[int], dtype: str, owner: object) -> Array: ...
def pack_weight(packed: Array, weight: Array) -> None: ...
def pack_rows(packed: Array, rows: Array, first_row: int, num_rows: int) -> None: ...
def has_fast_codes() -> bool: ...
def count_escapes(counts: Array, packed: Array, n: int, k: int) -> None: ...
def code_weight(
    coded: Array, escapes: Array, first: Array, packed: Array, n: int, k: int
) -> None: ...
def has_fast_screen() -> bool: ...
def make_screen(screen: Array, packed: Array, n: int, k: int) -> None: ...

class LinearWeight:
    """A packed weight, its bias and its screen, bound once; keeps their memory."""

    def __init__(
        self,
        packed: Array,
        bias: Array | None,
        n: int,
        k: int,
        screen: Array | None = None,
        escapes: Array | None = None,
    ) -> None: ...
    def linear(self, out: int, is_out_f32: bool, x: int, m: int, x_stride: int) -> None: ...
    def logits(
        self,
        out: Array,
        x: int,
        num_rows: int,
        x_stride: int,
        rows: Array,
        norm_weight: int,
        eps: float,
    ) -> None: ...
    def greedy(
        self,
        out: Array,
        x: int,
        num_rows: int,
        x_stride: int,
        rows: Array,
        norm_weight: int,
        eps: float,
    ) -> int: ...
    def gather_rows(self, out: int, ids: Array) -> None: ...

def digest_copies(targets: Sequence[object], sources: Sequence[object]) -> list[bytes | None]: ...
def match_prefix(
    lengths: object, hashes: tuple[bytes, ...], held: Mapping[Any, int], assumed: Mapping[Any, int]
) -> None: ...
def priced(
    costs: object,
    wait_s: object,
    prefill_s: object,
    load_s: object,
    num_decoding: object,
    crowds: object,
    free_fraction: object,
    mean_s: float,
    fleet_price: float,
    queue_price: float,
    decode_price: float,
) -> list[int]: ...

class WorkerNumbers:
    """Columns of the Master's tables, bound once; keeps their memory."""

    def __init__(
        self,
        num_blocks: object,
        num_free_blocks: object,
        reserved_blocks: object,
        num_in_flight: object,
        num_decoding: object,
        pending_s: object,
        head_s: object,
        head_start_s: object,
        base_s: object,
        token_s: object,
        attention_s: object,
    ) -> None: ...
    def free_blocks(self, free: object, slots: object, demand: int) -> int: ...
    def of(
        self,
        floats: object,
        ints: object,
        slots: object,
        free: object,
        cached_blocks: object,
        num_tokens: int,
        block_size: int,
        now: float,
    ) -> int: ...

def read_memory(words: Array, prefetch_bytes: int, hint: str) -> int: ...

class Sublayer:
    """Half of a decoder layer; keeps the memory of its arrays."""

def attention_sublayer(
    norm: Array,
    eps: float,
    qkv: LinearWeight,
    o: LinearWeight,
    query_norm: Array | None,
    key_norm: Array | None,
    cos_sin: Array,
    sections: Sequence[int],
    heads: tuple[int, int, int],
    scale: float,
    layer: int,
    group: RankGroup | None = None,
) -> Sublayer: ...
def mlp_sublayer(
    norm: Array,
    eps: float,
    gate_up: LinearWeight,
    down: LinearWeight,
    group: RankGroup | None = None,
) -> Sublayer: ...
def moe_sublayer(
    norm: Array,
    eps: float,
    router: LinearWeight,
    gate_up: LinearWeight,
    down: LinearWeight,
    shared_gate_up: LinearWeight | None,
    shared_down: LinearWeight | None,
    top_k: int,
    is_renormalized: bool,
    load: Array,
) -> Sublayer: ...
def run_sublayers(
    sublayers: Sequence[Sublayer],
    residual: Array,
    positions: Array,
    kv_cache: Array,
    slots: Array,
    block_tables: Array,
    query_start_loc: Array,
    seq_lens: Array,
    window: int,
    ancestor_mask: Array | None,
) -> None: ...

class Decoder:
    """Embedding, sublayers, final norm and head over a KV cache; keeps their memory."""

    def __init__(
        self,
        embedding: LinearWeight,
        sublayers: Sequence[Sublayer],
        norm: Array,
        eps: float,
        head: LinearWeight,
        kv_cache: Array,
    ) -> None: ...
    def logits(
        self,
        out: Array,
        token_ids: Array,
        rows: Array,
        positions: Array,
        slots: Array,
        block_tables: Array,
        query_start_loc: Array,
        seq_lens: Array,
        window: int,
        ancestor_mask: Array | None,
    ) -> None: ...
    def greedy(
        self,
        out: Array,
        token_ids: Array,
        rows: Array,
        positions: Array,
        slots: Array,
        block_tables: Array,
        query_start_loc: Array,
        seq_lens: Array,
        window: int,
        ancestor_mask: Array | None,
    ) -> None: ...

def route(ids: Array, weights: Array, logits: Array, is_renormalized: bool) -> None: ...
def sigmoid(out: Array, x: Array) -> None: ...
def experts(
    out: Array,
    x: Array,
    ids: Array,
    weights: Array,
    gate_up: LinearWeight,
    down: LinearWeight,
    num_experts: int,
    first_expert: int,
) -> None: ...
def rms_norm(out: Array, x: Array, weight: Array, eps: float) -> None: ...
def rotary(
    query: Array, key: Array, positions: Array, cos_sin: Array, sections: Sequence[int]
) -> None: ...
def silu_and_mul(out: Array, gate_up: Array) -> None: ...
def write_kv(
    key: Array, value: Array, key_cache: Array, value_cache: Array, slots: Array
) -> None: ...
def paged_attention(
    out: Array,
    query: Array,
    key_cache: Array,
    value_cache: Array,
    block_tables: Array,
    query_start_loc: Array,
    seq_lens: Array,
    scale: float,
    window: int,
    ancestor_mask: Array | None,
) -> None: ...
def greedy(token_ids: Array, logits: Array) -> None: ...
def sample(
    token_ids: Array,
    logits: Array,
    temperature: Array,
    min_p: Array,
    top_k: Array,
    top_p: Array,
    number: Array,
) -> None: ...
def logprobs(
    own: Array,
    ranks: Array,
    top: Array,
    top_ids: Array,
    logits: Array,
    rows: Array,
    token_ids: Array,
) -> None: ...
def uniforms(numbers: Array, seeds: Array, positions: Array) -> None: ...

class Ended(Exception):
    """A wait for another process is over. args: how ("timeout", "lost", "aborted", "closed"), and
    whose doing it is: a rank or reader, -1 for a ring's writer."""

class RankGroup:
    """One rank's part in shared memory of several; buffers come by address."""

    def __init__(
        self, descriptor: int, rank: int, size: int, slot_bytes: int, timeout_s: float
    ) -> None: ...
    @staticmethod
    def file_bytes(size: int, slot_bytes: int) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def slot_bytes(self) -> int: ...
    def has_all(self) -> bool: ...
    def abort(self) -> None: ...
    def close(self) -> None: ...
    def barrier(self) -> None: ...
    def all_reduce(self, x: int, count: int, is_bf16: bool) -> None: ...
    def all_gather(self, out: int, x: int, num_bytes: int) -> None: ...
    def broadcast(self, x: int, num_bytes: int, root: int) -> None: ...

class AllToAll:
    """Rows that have been sent, and those that have come."""

    def __init__(
        self, group: RankGroup, rows: int, row_bytes: int, counts: Sequence[int]
    ) -> None: ...
    def counts(self) -> list[int]: ...
    def receive(self, out: int) -> None: ...

def ring_file_bytes(num_readers: int, ring_bytes: int) -> int: ...

class RingWriter:
    """The side of a ring that writes messages to all readers."""

    def __init__(self, descriptor: int, num_readers: int, ring_bytes: int) -> None: ...
    def has_all(self) -> bool: ...
    def write(self, message: bytes, timeout_s: float) -> None: ...
    def check(self) -> None: ...
    def close(self) -> None: ...

class RingReader:
    """One of the sides that read."""

    def __init__(self, descriptor: int, reader: int, num_readers: int, ring_bytes: int) -> None: ...
    def has_all(self) -> bool: ...
    def read(self, timeout_s: float) -> bytes | None: ...
    def close(self) -> None: ...
