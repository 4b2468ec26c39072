"""What a config.json may hold: everything else is one line, said before memory is taken."""

import json
import resource
import time
from dataclasses import asdict
from typing import get_args, get_type_hints

import pytest
import torch
from contract import small
from safetensors.torch import load_file, save_file

from softvq.errors import UserError
from softvq.generator.config import DiTConfig, MARConfig, SiTConfig
from softvq.generator.diffusion import SCHEDULES
from softvq.generator.families import GENERATORS
from softvq.generator.process import PROCESSES, TARGETS
from softvq.generator.transformer import MLPS, NORMS, SiT
from softvq.probe import Probe, ProbeConfig
from softvq.tokenizer import BOTTLENECKS, Tokenizer, TokenizerConfig
from softvq.tokenizer.assignment import ASSIGNMENTS
from softvq.tokenizer.model import NETWORKS
from softvq.tokenizer.vit import STEMS

SIT = SiTConfig(8, 16, 3, width=32, depth=2, heads=2)


@pytest.mark.parametrize(
    ("config", "field", "made"),
    [
        (TokenizerConfig, "bottleneck", BOTTLENECKS),
        (TokenizerConfig, "network", NETWORKS),
        (TokenizerConfig, "stem", STEMS),
        (TokenizerConfig, "assignment", ASSIGNMENTS),
        (SiTConfig, "norm", NORMS),
        (SiTConfig, "mlp", MLPS),
        (SiTConfig, "interpolant", PROCESSES),
        (SiTConfig, "target", TARGETS),
        (DiTConfig, "target", TARGETS),
        (DiTConfig, "schedule", SCHEDULES),
    ],
)
def test_a_choice_is_what_is_made(config, field, made):
    assert sorted(get_args(get_type_hints(config)[field])) == sorted(made)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": "64"}, "height must be a whole number, got '64'"),
        ({"height": None}, "height must be a whole number, got null"),
        ({"height": 64.0}, "height must be a whole number, got 64.0"),
        ({"height": True}, "height must be a whole number, got True"),
        ({"tokens": [8]}, "tokens must be a whole number, got a list"),
        ({"gain": 1}, "gain must be true or false, got 1"),
        ({"tau": "hot"}, "tau must be a number, got 'hot'"),
        ({"tau": float("nan")}, "tau must be a number, got nan"),
        ({"tau": 0}, "tau must be above 0, got 0.0"),
        ({"layer_scale": float("inf")}, "layer_scale must be a number, got inf"),
        ({"kl_weight": -1e-6}, "kl_weight must be 0 or more"),
        ({"ema_decay": 1.5}, "ema_decay must be in 0 .. 1"),
        ({"network": ["vit"]}, "network a list is none of vit, cnn"),
        ({"encoder_heads": 0}, "encoder_heads must be above 0"),
        ({"encoder_depth": 0}, "encoder_depth must be above 0"),
        ({"decoder_width": -4}, "decoder_width must be above 0"),
        ({"decoder_width": 66}, "decoder_width 66 is not divisible by 4"),
        ({"encoder_depth": 10**9}, "encoder_depth must be at most 1,000, got 1000000000"),
        (
            {"codebook_size": 9 * 10**9},
            "codebook_size must be at most 2,147,483,647, got 9000000000",
        ),
        ({"tokens": 10**8}, "tokens are at most"),
        ({"stem": "conv", "patch": 1}, "stem conv needs an even patch, got 1"),
        ({"rope": "axial", "encoder_heads": 32}, "rotary positions need heads of 4n channels"),
    ],
)
def test_a_wrong_field_is_named(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        small(**changes)
    assert "\n" not in str(caught.value)


def test_whole_numbers_serve_as_floats():
    assert small(tau=1) == small(tau=1.0) and isinstance(small(tau=1).tau, float)


# ---- files ----


def saved(tmp_path, model):
    model.save_pretrained(tmp_path)
    return json.loads((tmp_path / "config.json").read_text())


BEYOND = [
    {"encoder_width": 1920000},
    {"codebook_size": 2 * 10**9},
    {"height": 2**17, "width": 2**17},
    {"encoder_depth": 999},
]


@pytest.mark.parametrize("changes", BEYOND)
def test_a_config_beyond_its_weights_takes_neither_memory_nor_time(changes, tmp_path):
    values = saved(tmp_path, Tokenizer(small()))
    (tmp_path / "config.json").write_text(json.dumps(values | changes))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(UserError, match="weights do not fit the config"):
        Tokenizer.from_pretrained(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    assert time.process_time() - start < 20


def test_a_damaged_config_is_one_line(tmp_path):
    values = saved(tmp_path, SiT(SIT))
    path = tmp_path / "config.json"
    lacking = {k: v for k, v in values.items() if k != "depth"}
    unnamed = {k: v for k, v in values.items() if k != "model"}
    for text, message in (
        (json.dumps(lacking), r"config\.json: lacks depth"),
        (json.dumps(unnamed), "not in the layout of softvq"),
        (json.dumps(values | {"depth": None}), r"config\.json: generator: depth must be a whole"),
        ("[" * 200_000, "nested too deep"),
        ("[1, 2]", "not a JSON object"),
        ('{"depth": ' + "9" * 5000 + "}", "not valid JSON"),
        ("\x00", "not valid JSON"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message) as caught:
            SiT.from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not valid JSON"):
        SiT.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    saved(tmp_path, Tokenizer(small()))
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    state["to_latent.weight"][3, 5] = value
    save_file(state, path)
    with pytest.raises(UserError, match=r"damaged: to_latent\.weight holds values that are not"):
        Tokenizer.from_pretrained(tmp_path)


JUNK = [None, True, -1, 0, 3, 2**40, 10**30, 0.5, -2.5, float("nan"), float("inf"), "", "vit", "a",
        [], [1], {}, {"a": 1}]  # fmt: skip


@pytest.mark.parametrize(
    ("net", "config", "count"),
    [
        (Tokenizer, small(), 300),
        (SiT, SIT, 150),
        (GENERATORS["dit"].network, DiTConfig(8, 16, 3, width=32, depth=1, heads=2), 150),
        (
            GENERATORS["mar"].network,
            MARConfig(8, 16, 3, 32, 1, 2, head_width=16, head_depth=1),
            150,
        ),
        (Probe, ProbeConfig(32, 32, 3, 8), 100),
    ],
)
def test_fuzzed_configs_open_or_are_refused(net, config, count, tmp_path):
    """Any field, of any value: it opens, or says why not. Nothing else."""
    net(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    draw = torch.Generator().manual_seed(0)

    def one_of(some):
        return some[int(torch.randint(len(some), (), generator=draw))]

    names, others = list(values), JUNK + [v for v in asdict(config).values() if v is not None]
    for _ in range(count):
        changed = dict(values)
        for _ in range(1 + int(torch.randint(2, (), generator=draw))):
            changed[one_of(names)] = one_of(others)
        if torch.rand((), generator=draw) < 0.1:
            changed.pop(one_of(names), None)
        path.write_text(json.dumps(changed))
        try:
            net.from_pretrained(tmp_path)
        except UserError as error:
            assert "\n" not in str(error)
