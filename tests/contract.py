"""What every tokenizer and every generator must do: subclass the contract and name a config."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from softvq.errors import UserError
from softvq.generator.families import GENERATORS, draw
from softvq.generator.sampler import NoiseStreams
from softvq.models import open_tokenizer
from softvq.tokenizer import Tokenizer, TokenizerConfig


def small(**changes) -> TokenizerConfig:
    """A tokenizer of 32 x 32 pixels and 8 tokens x 16 channels that runs in milliseconds."""
    shape = {
        "height": 32, "width": 32, "patch": 8, "tokens": 8, "channels": 16, "codebook_size": 64,
        "encoder_width": 64, "encoder_depth": 2, "encoder_heads": 2,
        "decoder_width": 64, "decoder_depth": 2, "decoder_heads": 2, "layer_scale": None,
    }  # fmt: skip
    return TokenizerConfig(**(shape | changes))


def photos(count: int = 4, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures [count, 3, height, width] in [-1, 1]."""
    noise = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (height, width), mode="bicubic").clamp(-1, 1)


class TokenizerContract:
    """Subclass with ``config`` set; pytest runs every test here on it."""

    config: TokenizerConfig

    @pytest.fixture
    def tokenizer(self) -> Tokenizer:
        torch.manual_seed(0)
        return Tokenizer(self.config)

    def tokens_at(self, height: int, width: int) -> int:
        """How many tokens an image of that size becomes."""
        return self.config.tokens

    def test_shapes(self, tokenizer):
        tokens = tokenizer.encode(photos())
        assert tokens.latents.shape == (4, self.config.tokens, self.config.channels)
        assert tokenizer.decode(tokens.latents).shape == (4, 3, 32, 32)
        reconstruction, again = tokenizer(photos())
        assert reconstruction.shape == (4, 3, 32, 32)
        assert isinstance(again, type(tokens))

    def test_losses_and_stats_are_scalars_and_training_only(self, tokenizer):
        tokens = tokenizer.train().encode(photos())
        for value in (tokens.losses | tokens.stats).values():
            assert value.shape == () and torch.isfinite(value)
        assert all(not value.requires_grad for value in tokens.stats.values())
        tokens = tokenizer.eval().encode(photos())
        assert not tokens.losses and not tokens.stats

    def test_every_parameter_gets_gradient(self, tokenizer):
        # Zero-initialised layers block the gradient of what stands before them: open them first.
        with torch.no_grad():
            for parameter in tokenizer.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        reconstruction, tokens = tokenizer.train()(photos())
        loss = (reconstruction - photos()).square().mean() + sum(tokens.losses.values())
        loss.backward()
        learned = [(n, p) for n, p in tokenizer.named_parameters() if p.requires_grad]
        silent = [n for n, p in learned if p.grad is None or not p.grad.any()]
        assert not silent

    def test_images_do_not_leak_into_each_other(self, tokenizer):
        tokenizer.eval()
        together = tokenizer.encode(photos()).latents
        alone = tokenizer.encode(photos()[1:2]).latents
        torch.testing.assert_close(alone, together[1:2], atol=1e-4, rtol=1e-4)

    def test_evaluation_is_deterministic(self, tokenizer):
        tokenizer.eval()
        assert torch.equal(tokenizer.reconstruct(photos()), tokenizer.reconstruct(photos()))
        assert tokenizer.reconstruct(photos()).abs().max() <= 1

    def test_other_sizes_and_aspect_ratios(self, tokenizer):
        tokenizer.eval()
        for height, width in ((64, 64), (32, 64), (48, 24)):
            reconstruction, tokens = tokenizer(photos(2, height, width))
            assert reconstruction.shape == (2, 3, height, width)
            count = self.tokens_at(height, width)
            assert tokens.latents.shape == (2, count, self.config.channels)
        with pytest.raises(ValueError, match="not divisible by the patch"):
            tokenizer.encode(photos(1, 30, 32))

    def test_normalize_and_back(self, tokenizer):
        latents = 3 + 2 * torch.randn(4, self.config.tokens, self.config.channels)
        tokenizer.latent_mean.copy_(latents.mean((0, 1)))
        tokenizer.latent_std.copy_(latents.std((0, 1)))
        unit = tokenizer.normalize(latents)
        assert unit.mean((0, 1)).abs().max() < 1e-3
        torch.testing.assert_close(unit.std((0, 1)), torch.ones_like(unit[0, 0]))
        torch.testing.assert_close(tokenizer.denormalize(unit), latents)

    def test_save_and_load(self, tokenizer, tmp_path):
        tokenizer.latent_mean.fill_(0.25)
        tokenizer.eval().save_pretrained(tmp_path)
        loaded = open_tokenizer(tmp_path)
        assert loaded.config == tokenizer.config and not loaded.training
        assert torch.equal(loaded.reconstruct(photos()), tokenizer.reconstruct(photos()))
        assert torch.equal(loaded.latent_mean, tokenizer.latent_mean)

    def test_half_precision_file_loads_as_float32(self, tokenizer, tmp_path):
        tokenizer.eval().save_pretrained(tmp_path, half=True)
        loaded = open_tokenizer(tmp_path)
        assert {p.dtype for p in loaded.parameters()} == {torch.float32}
        difference = loaded.reconstruct(photos()) - tokenizer.reconstruct(photos())
        assert difference.abs().max() < 0.05

    def test_loading_is_strict(self, tokenizer, tmp_path):
        tokenizer.save_pretrained(tmp_path)
        config = tmp_path / "config.json"
        text = config.read_text()
        config.write_text(text.replace('"channels": 16', '"channels": 32'))
        with pytest.raises(UserError, match=r" is \[.*16.*\], expected \[.*32.*\]"):
            open_tokenizer(tmp_path)
        config.write_text(text.replace('"tokens": 8', '"tokkens": 8'))
        with pytest.raises(UserError, match="did you mean 'tokens'"):
            open_tokenizer(tmp_path)
        config.write_text(text)
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(UserError, match="not a readable safetensors file"):
            open_tokenizer(tmp_path)

    def test_bfloat16_autocast_stays_close(self, tokenizer):
        tokenizer.eval()
        exact = tokenizer.encode(photos()).latents
        with torch.autocast("cpu", torch.bfloat16):
            rough = tokenizer.encode(photos()).latents
        assert rough.dtype == torch.float32
        assert (rough - exact).abs().mean() < 0.1 * exact.abs().mean()


class GridContract(TokenizerContract):
    """A tokenizer with one token per cell: a larger image has more of them."""

    def tokens_at(self, height: int, width: int) -> int:
        return (height // self.config.patch) * (width // self.config.patch)

    def test_tokens_must_fill_the_grid(self, tokenizer):
        latents = torch.zeros(1, self.config.tokens - 1, self.config.channels)
        with pytest.raises(UserError, match=r"15 tokens are not a grid of 4 x 4 cells"):
            tokenizer.decode(latents)


class GeneratorContract:
    """Subclass with ``config``, of 6 tokens x 3 channels and 4 classes, and ``predict`` set."""

    config: Any
    shape = (6, 3)  # of the latents that it learns, of one image
    field = ("depth", 2, 1)  # a field of the config, its value, and one that does not fit the file

    @property
    def family(self):
        return next(f for f in GENERATORS.values() if f.config is type(self.config))

    def predict(self, network, rows, y):
        """The network's prediction for images ``rows`` of a fixed batch of 5, with labels y."""
        raise NotImplementedError

    def network(self, **changes):
        """With random weights instead of the zero gates and output of a new one."""
        torch.manual_seed(0)
        network = self.family.network(replace(self.config, **changes)).eval()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        return network

    def loss(self, network, y, seed=0):
        x0, rng = torch.randn(5, *self.shape, generator=seeded(7)), seeded(seed)
        return self.family.loss(network, x0, y, network.config, self.family.time, rng)

    def test_a_new_network_predicts_zero(self):
        prediction = self.predict(self.family.network(self.config), range(5), torch.arange(5) % 4)
        assert (prediction == 0).all()

    def test_images_do_not_leak_into_each_other(self):
        network, y = self.network().double(), torch.arange(5) % 4
        together = self.predict(network, range(5), y)
        torch.testing.assert_close(self.predict(network, [2], y[2:3]), together[2:3])
        assert (together[2] - together[3]).abs().max() > 1e-3

    def test_the_null_class(self):
        network, y = self.network(), torch.arange(5) % 4
        null = self.predict(network, range(5), torch.full_like(y, 4))
        assert torch.equal(self.predict(network, range(5), None), null)
        labelled = self.predict(network, range(5), y)
        assert (labelled - null).abs().flatten(1).amax(1).min() > 1e-3
        network = self.network(num_classes=0)
        assert torch.equal(
            self.predict(network, range(5), y), self.predict(network, range(5), None)
        )

    def test_every_parameter_gets_gradient(self):
        network = self.network(label_dropout=0.5).train()
        for seed in range(20):  # a MAR hides all tokens in most
            self.loss(network, torch.arange(5) % 4, seed).mean().backward()
        assert not [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]

    def test_loss_follows_its_rng_and_drops_labels(self):
        network, y = self.network(label_dropout=0.0), torch.arange(5) % 4
        loss = self.loss(network, y)
        assert loss.shape == (5,) and torch.equal(self.loss(network, y), loss)
        network.config = replace(network.config, label_dropout=1.0)
        dropped = self.loss(network, y)
        assert torch.equal(dropped, self.loss(network, None))
        assert (dropped - loss).abs().min() > 1e-6

    def test_bfloat16_autocast_stays_close(self):
        network, y = self.network(), torch.arange(5) % 4
        exact = self.loss(network, y)
        with torch.autocast("cpu", torch.bfloat16):
            rough = self.loss(network, y)
        assert rough.dtype == torch.float32
        torch.testing.assert_close(rough, exact, rtol=0.05, atol=0)

    def test_same_pictures_whatever_the_batch(self):
        network, y = self.network().double(), torch.arange(5) % 4
        for parameter in network.parameters():
            parameter.data.mul_(0.3)
        whole = draw(network, NoiseStreams(3, range(5)), y, steps=3)
        parts = [
            draw(network, NoiseStreams(3, rows), y[list(rows)], steps=3)
            for rows in (range(2), range(2, 5))
        ]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-10)

    def test_save_and_load_strictly(self, tmp_path):
        network, kind = self.network(), self.family.network
        network.save_pretrained(tmp_path)
        loaded = kind.from_pretrained(tmp_path)
        assert loaded.config == self.config and not loaded.training
        state = network.state_dict()
        assert all(torch.equal(value, state[k]) for k, value in loaded.state_dict().items())
        config, (name, value, other) = tmp_path / "config.json", self.field
        text = config.read_text()
        for changed, message in (
            (text.replace(f'"{name}": {value}', f'"{name}": {other}'), "missing|extra|expected"),
            (text.replace(f'"{name}"', f'"{name}h"'), f"did you mean '{name}'"),
            (text.replace(f'"{kind.__name__}"', '"Nothing"'), f"a Nothing, not a {kind.__name__}"),
        ):
            config.write_text(changed)
            with pytest.raises(UserError, match=message):
                kind.from_pretrained(tmp_path)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
