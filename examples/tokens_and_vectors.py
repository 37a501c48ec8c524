"""A picture in, its tokens out; what the tokens keep of it as a PNG; and the emoji that the trunk finds most like it.

    python examples/tokens_and_vectors.py                          # an emoji that neither model has seen
    python examples/tokens_and_vectors.py cat.jpg redrawn.png      # any picture; where to write the reconstruction
"""
import argparse

import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

from beit_lab.codebook.autoencode import VQVAE
from beit_lab.core import LabError, enlarge, samples
from beit_lab.data.sources import open_source, split_source
from beit_lab.pretrain.objectives import MaskedImageModel


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('picture', nargs='?', help='default: an emoji')
    parser.add_argument('out', nargs='?', default='reconstruction.png', help='default: %(default)s')
    arguments = parser.parse_args()
    picture = arguments.picture or split_source('emoji')[1][109]['image']

    tokenizer = VQVAE.from_pretrained(samples('weights/emoji/tokenizer'))
    tokens = tokenizer(picture, image_size=32)                                                   # (8, 8)
    print('\n'.join(' '.join(f'{token:3}' for token in row) for row in tokens.tolist()))
    Image.fromarray(enlarge(tokenizer.decode(tokens[None])[0])).save(arguments.out)

    trunk, emoji = MaskedImageModel.from_pretrained(samples('weights/emoji/model')).trunk, open_source('emoji')
    likeness = cosine_similarity(trunk.vectors(picture), trunk.vectors(emoji.images(32)))        # (N,)
    for value, i in zip(*likeness.topk(5)): print(f'{value:.3f}  {emoji.captions()[i][0]}')


if __name__ == '__main__':
    try: main()
    except LabError as problem: raise SystemExit(str(problem)) from None
