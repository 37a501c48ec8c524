"""Rebuild data_samples/scenes: 750 scenes of the procedural world as parquet, with the features of Hugging Face datasets.

    python data_samples/make_scenes.py [FOLDER]

Pixels and columns come out equal on every machine; the bytes of the files may differ with the versions of pyarrow and Pillow.
"""
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

from beit_lab.core import atomic_path
from beit_lab.data.drawing import SHAPES
from beit_lab.data.language import scene_table

SIZE = 64                                        # pixels a side
SPLITS = dict(train=(0, 600), test=(600, 150))   # index of the first scene, number of scenes
PICTURES = ('image', 'instance_mask', 'semantic_mask')


def features():
    "The type of every column."
    from datasets import ClassLabel, Features, Image, Sequence, Value
    text, whole = Value('string'), Value('int32')
    return Features(dict(index=whole, image=Image(), instance_mask=Image(), semantic_mask=Image(), label=ClassLabel(names=list(SHAPES)),
                         boxes=Sequence(Sequence(Value('float32'), length=4)), labels=Sequence(ClassLabel(names=list(SHAPES))),
                         names=Sequence(text),
                         textures=Sequence(text), sizes=Sequence(text), ground=text, tone=text, captions=Sequence(text),
                         kinds=Sequence(text), questions=Sequence(text), answers=Sequence(text)))


def png(array):
    "An array as the cell of an image column."
    Image.fromarray(array).save(buffer := BytesIO(), 'PNG', optimize=True)
    return dict(bytes=buffer.getvalue(), path=None)


def build(start, count):
    "A data set of scenes `start` to `start + count`."
    from datasets import Dataset
    table = scene_table(count, SIZE, start=start)
    for name in PICTURES: table[name] = [png(array) for array in table[name]]
    return Dataset.from_dict(table, features=features())


def main(folder=Path(__file__).parent/'scenes'):
    "Write one parquet file a split."
    from datasets import disable_progress_bars
    disable_progress_bars()
    for split, (start, count) in SPLITS.items():
        with atomic_path(Path(folder)/f'{split}-00000-of-00001.parquet') as temporary: build(start, count).to_parquet(temporary)
        print(f'{split}: {count} scenes')


if __name__ == '__main__': main(*sys.argv[1:])
