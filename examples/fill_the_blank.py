"""A sentence with a blank, and a picture: which word is missing? Answered with open eyes and with closed ones.

    python examples/fill_the_blank.py                              # a drawn scene that the model has not seen
    python examples/fill_the_blank.py "a ___ circle" picture.png   # your own; the model knows drawn scenes and nothing else
"""
import argparse

from beit_lab.core import LabError
from beit_lab.data.language import exact_caption
from beit_lab.data.scenes import scene
from beit_lab.pretrain.reader import Reader


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('text', nargs='?', help='with ___ where a word is missing; default: the caption of a scene')
    parser.add_argument('picture', nargs='?', help='default: the scene')
    given = parser.parse_args()
    unseen = scene(20_000_003, most=2, plain=True)
    text = given.text or exact_caption(unseen).replace(unseen.objects[0].colour, '___', 1)
    picture = given.picture or unseen.image

    reader = Reader.shipped('scenes')
    print(f'{text}\n\nwith the picture\n{reader.fill(text, picture)}\n\nwithout it\n{reader.fill(text)}')
    print(f'\ncodes of the picture: {reader.tokens(picture).unique().numel()} different ones; vector of the pair: {reader.embed(picture, reader.fill(text, picture).text).shape[0]} numbers')


if __name__ == '__main__':
    try: main()
    except LabError as problem: raise SystemExit(str(problem)) from None
