"Naming pixels instead of tokens: the same batches, MAE's own loss."
import pytest, torch
import torch.nn.functional as F
from einops import rearrange, repeat

from beit_lab.core import ConfigError, generator
from beit_lab.masking import hidden_positions
from beit_lab.pretrain.objectives import MaskedImageModel, MIMConfig
from beit_lab.pretrain.rivals import explained, hidden_pixels, normalised_patches, pixel_learner, pixel_task
from beit_lab.training import TrainConfig, train
from beit_lab.trunk.sizes import trunk_config


def task(): return MIMConfig(trunk=trunk_config('pico', image_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2), codebook_size=32, mode='visible',
                             mask_kind='random', mask_ratio=0.5, decoder_dim=16, decoder_heads=2)


def test_loss_equals_transformers():
    "transformers' ViTMAE with normalised pixels gives the same loss for the same answers."
    from transformers import ViTMAEConfig, ViTMAEForPreTraining
    peer = ViTMAEForPreTraining(ViTMAEConfig(image_size=16, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
                                             decoder_hidden_size=8, decoder_num_hidden_layers=1, decoder_num_attention_heads=1, norm_pix_loss=True))
    draw = generator('rivals')
    pixels, noise = torch.rand(3, 3, 16, 16, generator=draw), torch.rand(3, 16, generator=draw)
    found = peer(pixels, noise=noise)
    mask = rearrange(found.mask.bool(), 'b (h w) -> b h w', h=4)
    answers = hidden_states(found.logits, mask)
    torch.testing.assert_close(F.mse_loss(answers, hidden_pixels(pixels, mask, 4)), found.loss, atol=1e-6, rtol=1e-5)


def hidden_states(states, mask):
    "The rows of (B, N, D) at hidden places."
    return states.gather(1, repeat(hidden_positions(mask)[0], 'b m -> b m d', d=states.shape[-1]))


def test_patches_are_normalised_and_flat_ones_stay_finite():
    patches = normalised_patches(torch.rand(2, 3, 8, 8, generator=generator(1)), 4)
    torch.testing.assert_close(patches.mean(-1), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(patches.var(-1), torch.ones(2, 4), atol=1e-3, rtol=0)
    assert torch.isfinite(normalised_patches(torch.ones(1, 3, 8, 8), 4)).all()


def test_it_learns_and_resumes(tmp_path):
    "Two colours, left and right: what is hidden can be known, so grey is soon beaten."
    images = torch.zeros(32, 3, 16, 16, dtype=torch.uint8)
    images[:, 0, :, ::2] = 255
    def learner():
        torch.manual_seed(0)
        return pixel_learner(MaskedImageModel(pixel_task(task())), images, images[:8], TrainConfig(steps=60, batch_size=16, warmup_steps=4, piece=20))
    run = train(learner(), tmp_path/'state')
    assert run.run_log.rows[-1]['explained'] > 0.5
    again = train(learner(), tmp_path/'state')
    for a, b in zip(run.model.state_dict().values(), again.model.state_dict().values()): assert torch.equal(a, b)


def test_a_model_for_tokens_is_refused():
    with pytest.raises(ConfigError, match='pixel_task'): pixel_learner(MaskedImageModel(task()), torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    assert explained(torch.ones(1, 2, 3), torch.ones(1, 2, 3)) == 1
