"""The schema of a run: one frozen dataclass per config group, holding types and meanings and no values.

Values live in conf/, in one place each; `yxanul.composition` brings both together. What types cannot say (one key
against another) is in `yxanul.validation`.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any, List, Optional


class Norm(Enum):
    rmsnorm = "rmsnorm"
    layernorm = "layernorm"


class FeedForward(Enum):
    swiglu = "swiglu"
    gelu = "gelu"
    relu2 = "relu2"  # ReLU squared, arXiv 2109.08668


class Positions(Enum):
    rotary = "rotary"
    learned = "learned"


class Dtype(Enum):
    fp32 = "fp32"
    bf16 = "bf16"


class Backend(Enum):
    auto = "auto"
    te = "te"
    scaled_mm = "scaled_mm"
    emulated = "emulated"


class Recipe(Enum):
    auto = "auto"
    delayed = "delayed"
    tensorwise = "tensorwise"
    rowwise = "rowwise"
    blockwise = "blockwise"
    mxfp8 = "mxfp8"


class Fallback(Enum):
    bf16 = "bf16"
    error = "error"


class TokenizerKind(Enum):
    hub = "hub"
    superbpe = "superbpe"
    bpe = "bpe"


class DataKind(Enum):
    files = "files"
    stdlib = "stdlib"


class OnError(Enum):
    stop = "stop"
    skip = "skip"


class OnSpike(Enum):
    warn = "warn"
    skip = "skip"
    rollback = "rollback"
    stop = "stop"


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Parallel(Enum):
    ddp = "ddp"
    fsdp = "fsdp"


class AttentionKernel(Enum):
    auto = "auto"
    sdpa = "sdpa"
    bmm = "bmm"
    flex = "flex"
    varlen = "varlen"
    flash = "flash"


class CrossEntropyKernel(Enum):
    auto = "auto"
    chunked = "chunked"
    plain = "plain"
    liger = "liger"


class ScheduleKind(Enum):
    cosine = "cosine"
    linear = "linear"
    wsd = "wsd"


class WandbMode(Enum):
    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer; the vocabulary comes from the tokenizer."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int  # divides num_heads; fewer is grouped-query attention
    intermediate_size: int
    embedding_rank: Optional[int]  # null: a full-rank embedding
    tied: bool  # the head is the embedding; false: a full table of its own, which begins at zero
    max_seq_len: int  # positions; also the context of evaluation
    norm: Norm
    norm_eps: float
    feed_forward: FeedForward
    positions: Positions
    rope_theta: float
    qk_norm: bool  # RMS-normalize queries and keys per head, without weights
    init_std: float


@dataclass(frozen=True)
class PrecisionConfig:
    """What the matrix products compute in; weights, optimizer state and loss are always float32."""

    compute_dtype: Dtype  # of activations, and of every product that is not in FP8
    layers: Optional[str]  # a module of yours, yxanul_precision.<this>, that makes the layers; null: those of here
    fp8: bool  # the products of the layers' matrices in FP8, as far as the plan puts them there
    backend: Backend  # auto: Transformer Engine, else torch's scaled_mm; on a CPU emulated
    recipe: Recipe  # auto: by backend and GPU
    power_of_two_scales: bool
    select: Any  # which products: "all", "timed" (those that are faster), or a list of patterns
    high_precision: List[str]  # patterns of layers that are left in compute_dtype, e.g. blocks.0.*, blocks.-1.*
    start_step: int  # optimizer steps in compute_dtype before FP8 begins
    fallback: Fallback  # where FP8 cannot run: go on in compute_dtype, or stop
    watch_every: Optional[int]  # steps between looks at magnitudes and errors of FP8; null: never
    max_saturation: float  # share of clamped values, and
    max_error: float  # mean relative error of quantization, beyond which a layer goes back to compute_dtype


@dataclass(frozen=True)
class TokenizerConfig:
    kind: TokenizerKind  # hub: a published file; superbpe, bpe: trained on the run's own data
    path: Optional[str]  # a local tokenizer.json, instead of the hub's
    repo: Optional[str]  # Hugging Face repository of kind=hub
    revision: Optional[str]
    vocab_size: int  # entries including special tokens
    transition: Optional[int]  # superbpe: vocabulary size at which merges may begin to cross spaces
    train_bytes: Optional[int]  # superbpe, bpe: bytes of text to train on
    end_of_text: str  # the special token that begins every document
    bytes_per_token: float  # measured on the usual text; only the plan's predictions use it


@dataclass(frozen=True)
class Stage:
    """A stretch of the run with one sequence length."""

    seq_len: int  # tokens
    step_tokens: int  # tokens of one optimizer step
    share: float  # of the run's tokens, 0..1
    lr_scale: float
    grad_clip: float  # largest global gradient norm


@dataclass(frozen=True)
class NGramConfig:
    """N-grams that are counted before training and added to the logits."""

    order: int  # the longest, in tokens; 1 is a bias of each token, 0 counts nothing
    tokens: int  # in whole documents, up to which they are counted; what is counted is not read


@dataclass(frozen=True)
class CurriculumConfig:
    stages: List[Stage]
    max_step_tokens: Optional[int]  # a cap on every stage's step_tokens, for small machines
    max_seq_len: Optional[int]  # a cap on every stage's seq_len, likewise


@dataclass(frozen=True)
class PeakConfig:
    """Peak rates of matrix products in TFLOP/s; null: measured when the run starts."""

    fp32: Optional[float]
    bf16: Optional[float]


@dataclass(frozen=True)
class HardwareConfig:
    device: Device
    memory_gb: Optional[float]  # GiB a run may fill; null: asked of the device
    compute_capability: Optional[float]  # of a GPU, e.g. 9.0; null: asked of the device
    peak_tflops: PeakConfig
    utilization: float  # share of the peak that training is expected to reach; for predicted times only
    micro_batch: Any  # "auto", or sequence length -> sequences at once on a device or "auto"
    compile: Any  # torch.compile for the layers: true, false, or "auto": where it pays, on a GPU
    recompute: float  # share of the layers that compute their feed-forward again instead of keeping it, 0..1
    deterministic: bool  # on a GPU too the same command gives the same weights, bit for bit; slower
    nodes: int  # to plan for, and with more than one GPU in all to insist on; training takes what it is started with
    gpus_per_node: int
    parallel: Parallel  # of several processes, each holds the whole model (ddp) or a share of it (fsdp)
    gpu_bandwidth: Optional[float]  # GB/s one way from a GPU to another of its node; for predicted times; null: unknown
    node_bandwidth: Optional[float]  # GB/s one way from a node to others, by all its network cards; likewise


@dataclass(frozen=True)
class DataConfig:
    kind: DataKind
    path: Optional[str]  # a file, or a folder of *.parquet, *.jsonl or *.txt
    repo: Optional[str]  # Hugging Face dataset that is downloaded where path is missing
    revision: Optional[str]  # its commit; null: the newest at the first download, and that one from then on
    files: Optional[str]  # its files, for example data/*.parquet; path must end in their folder
    expected_files: Optional[int]  # how many there are; another number is told
    text_column: str
    cache: str  # where tokens, held-out text and trained tokenizers are kept
    held_out: float  # share of the documents, chosen by their hash, never trained on
    held_out_path: Optional[str]  # a file or folder of text to evaluate on instead; not trained on where path holds it
    on_error: OnError  # what a broken file, row group or row does: stop, or be skipped and counted
    workers: Optional[int]  # processes that tokenize; null: one a core
    part: int  # prepare: which share of the files this process does, 0..parts-1
    parts: int  # prepare: into how many shares they are divided


@dataclass(frozen=True)
class MuonConfig:
    """Muon for the matrices inside the layers."""

    lr: float  # peak learning rate of the orthogonal update
    momentum: float
    weight_decay: float
    iterations: int  # of Newton-Schulz


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, for all parameters or for those that Muon leaves."""

    lr: float  # peak learning rate, before the stage's scale
    weight_decay: float  # on matrices only
    betas: List[float]
    eps: float
    muon: Optional[MuonConfig]


@dataclass(frozen=True)
class ScheduleConfig:
    kind: ScheduleKind
    warmup: float  # share of the run's tokens
    decay: float  # wsd: share of the run's tokens, at its end
    floor: float  # the last learning rate as a share of the peak


@dataclass(frozen=True)
class TrainConfig:
    tokens: int  # the token budget that the stages share
    steps: Optional[int]  # if set: the budget is what this many steps hold
    max_bad_steps: int  # stop after this many steps skipped in a row, or rollbacks in all
    on_spike: (
        OnSpike  # a loss that stands out: tell, skip the step, go back to a checkpoint and leave out data, or stop
    )


@dataclass(frozen=True)
class EvaluateConfig:
    every: Optional[int]  # optimizer steps; null: only at the end
    bytes: int  # of held-out text, whole documents up to about this much
    context_bytes: Optional[int]  # of text before a token, at most; for tokenizers to be compared; null: all that fits
    samples: int  # generated at the end
    sample_tokens: int


@dataclass(frozen=True)
class CheckpointConfig:
    every: int  # optimizer steps
    keep: int  # how many of the newest to keep


@dataclass(frozen=True)
class WandbConfig:
    mode: WandbMode  # auto: online if WANDB_API_KEY is set, else off
    project: str


@dataclass(frozen=True)
class TrackingConfig:
    log_every: int  # steps between lines when the console is no terminal
    stall_seconds: Optional[float]  # without a move, until a run is said to stand still, and where; null: never
    tensorboard: bool
    wandb: WandbConfig


@dataclass(frozen=True)
class Config:
    model: ModelConfig
    precision: PrecisionConfig
    tokenizer: TokenizerConfig
    ngram: NGramConfig
    curriculum: CurriculumConfig
    hardware: HardwareConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    checkpoint: CheckpointConfig
    tracking: TrackingConfig
    attention: AttentionKernel  # auto: at each sequence length the fastest when timed on the device
    cross_entropy: CrossEntropyKernel  # of head and loss; auto likewise
    seed: int
    init_from: Optional[str]  # a run, or a Hugging Face folder, whose weights to begin with
    resume_from_checkpoint: Optional[str]  # a checkpoint folder of another run to start from


@dataclass(frozen=True)
class CompareConfig(Config):
    """A run's composition, and the tokenizers to compare on its data."""

    tokenizers: List[str]  # choices of the group tokenizer, or paths of tokenizer.json files
    compare_bytes: Optional[int]  # of text, chosen by document hash; null: all of it
    output: str  # folder for the table as JSON and the plot


@dataclass(frozen=True)
class InspectConfig(Config):
    """A run's composition, and what to show of its data."""

    stage: int  # of the curriculum, counted from 1
    sequences: int  # how many of its first sequences to show


@dataclass(frozen=True)
class BenchmarkConfig(Config):
    """A run's composition, and what to measure beside it."""

    compare: List[str]  # further compositions: overrides with spaces between them, on top of this one
    rounds: int  # how often each stage of each composition is measured, in turns
    output: str  # folder for the result as JSON and the plot
