"Noise on every weight, for comparisons that nothing may pass by being zero."
import torch


def scramble(module, seed=0, size=0.15):
    "Give every parameter noise of its own, tables and tokens included, so that nothing is compared with zero."
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters(): p.add_(size*torch.randn(p.shape, generator=source))
    return module.eval()
