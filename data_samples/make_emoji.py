"""Make data_samples/emoji/ : the base emoji of Noto at 64 pixels, with its name, category and concept.

    python data_samples/make_emoji.py                                  # fetches two small packages with `npm pack`
    python data_samples/make_emoji.py --package DIR --names DIR        # uses unpacked ones

The result is the same on every machine. Sources and licences: data_samples/emoji/README.md.
"""
import argparse, hashlib, io, json, re, subprocess, tarfile, tempfile
from collections import defaultdict
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image as ImageFeature, Sequence, Value
from PIL import Image

PACKAGE, NAMES = 'emoji-datasource-google@16.0.0', 'unicode-emoji-json@0.8.0'
CATEGORIES = ['Smileys & Emotion', 'People & Body', 'Animals & Nature', 'Food & Drink', 'Travel & Places', 'Activities', 'Objects', 'Symbols', 'Flags']
FEATURES = Features(dict(image=ImageFeature(), name=Value('string'), short_names=Sequence(Value('string')), emoji=Value('string'),
                         category=ClassLabel(names=CATEGORIES), subcategory=Value('string'), concept=Value('int64')))
SPLITS = dict(test=0.1, validation=0.1) # share of the rows of each category; the rest trains
LARGE = 8                               # a concept with more rows than this stays in training

# Words that only tell variants of one idea apart. A concept is a name without them.
PEOPLE = 'man woman men women person people boy girl baby child older old deaf’s men’s women’s man’s woman’s and'
COLOURS = 'red orange yellow green blue light dark purple brown black grey white pink'
PLACES = 'left right up down up-left up-right down-left down-right up-down left-right leftwards rightwards upwards downwards left-facing right-facing facing oncoming pointing tilted'
AMOUNTS = 'small medium medium-small large low medium-light medium-dark high half full muted 1st 2nd 3rd double one two three'
STATES = 'face button done not open closed raised lowered locked unlocked yen dollar euro pound clockwise counterclockwise increasing decreasing departure arrival'
VARIANT_WORDS = set(' '.join([PEOPLE, COLOURS, PLACES, AMOUNTS, STATES]).split())
SAME = {'prince': 'with crown', 'princess': 'with crown', 'merman': 'merperson', 'mermaid': 'merperson', 'santa claus': 'claus', 'mrs. claus': 'claus',
        'mx claus': 'claus', 'musical notes': 'musical note', 'speech bubble': 'bubble', 'anger bubble': 'bubble', 'thought balloon': 'bubble'}


# --- names ---------------------------------------------------------------------------------------------------------------------------------

def characters(unified:str)->str:
    "'1F1E9-1F1EA' as the characters themselves."
    return ''.join(chr(int(code, 16)) for code in unified.split('-'))

COLON = re.compile(r'^(family|kiss|couple with heart|man|woman|person) (?=man|woman|adult|red hair|white hair|curly|blond|bald|beard)')

def readable(record:dict, names:dict)->str:
    "Unicode's short name in lower case, its colon put back ('man: red hair'), flags as 'flag of ...'; skin tones by the package's name."
    emoji = characters(record['unified'])
    if emoji not in names: return record['short_name'].replace('-', ' ')
    name = names[emoji]['name'].lower()
    return re.sub('^flag ', 'flag of ', name) if record['category'] == 'Flags' else COLON.sub(r'\1: ', name)

def idea(name:str, category:str)->str:
    "What a name says once the words are gone that only tell variants apart."
    if category == 'Flags' and name.startswith('flag of '): return name
    if re.search(r"o’clock|-thirty", name): return 'clock face'
    if 'moon' in name and category == 'Travel & Places': return 'moon'
    if name.startswith('skin tone'): return 'skin tone'
    if name.startswith('globe showing'): return 'globe'
    if name.startswith('keycap'): return 'keycap'
    head = name.split(':')[0]                      # 'family: man, woman, boy' is a family
    words = [w for w in re.split(r'[ ,]+', head) if w not in VARIANT_WORDS]
    short = ' '.join(words) or ('person' if set(head.split()) & set(PEOPLE.split()) else head)
    return SAME.get(short, short)


# --- pictures ------------------------------------------------------------------------------------------------------------------------------

def on_white(path:Path)->Image.Image:
    "The picture as RGB, its transparent parts white."
    picture = Image.open(path).convert('RGBA')
    ground = Image.new('RGBA', picture.size, 'white')
    ground.alpha_composite(picture)
    return ground.convert('RGB')

def png(picture:Image.Image)->bytes:
    "The smallest PNG that Pillow writes, checked to hold exactly the same pixels."
    buffer = io.BytesIO()
    picture.save(buffer, 'PNG', optimize=True)
    assert Image.open(io.BytesIO(buffer.getvalue())).tobytes() == picture.tobytes()
    return buffer.getvalue()


# --- concepts and splits -------------------------------------------------------------------------------------------------------------------

def number_concepts(rows:list):
    "Give every row its `concept`: rows with one idea, or with one and the same picture, share a number."
    parent = {}
    def root(key):
        while parent.setdefault(key, key) != key: key = parent[key]
        return key
    for row in rows: parent[root(row['idea'])] = root(hashlib.sha256(row['pixels']).hexdigest())
    numbers = {}
    for row in rows: row['concept'] = numbers.setdefault(root(row['idea']), len(numbers))

def split_rows(rows:list)->dict:
    "Rows by split: within each category, whole concepts in the order of a hash, until a split has its share."
    members, by_category, split_of = defaultdict(list), defaultdict(list), {}
    for row in rows: members[row['concept']].append(row)
    for concept, same in members.items(): by_category[same[0]['category']].append(concept)
    for concepts in by_category.values():
        total = sum(len(members[c]) for c in concepts)
        small = sorted((c for c in concepts if len(members[c]) <= LARGE), key=lambda c: hashlib.sha256(members[c][0]['idea'].encode()).digest())
        for split, share in SPLITS.items():
            taken = 0
            while taken < round(share*total):
                concept = small.pop()
                split_of[concept], taken = split, taken + len(members[concept])
    return {split: [row for row in rows if split_of.get(row['concept'], 'train') == split] for split in ('train', *SPLITS)}


# --- putting it together -------------------------------------------------------------------------------------------------------------------

def fetch(spec:str, folder:Path)->Path:
    "Download and unpack an npm package; nothing is installed or run."
    name = subprocess.run(['npm', 'pack', spec, '--silent'], cwd=folder, check=True, capture_output=True, text=True).stdout.split()[-1]
    with tarfile.open(folder/name) as archive: archive.extractall(folder/spec, filter='data')
    return folder/spec/'package'

def read_rows(package:Path, names:dict)->list:
    "One dict an emoji, in Unicode's order."
    rows = []
    records = json.loads((package/'emoji.json').read_text(encoding='utf-8'))
    for record in sorted(records, key=lambda r: r['sort_order']):
        name, picture = readable(record, names), on_white(package/'img/google/64'/record['image'])
        # The five skin-tone swatches form a category 'Component' of their own; they are shown with the people they colour.
        category = 'People & Body' if record['category'] == 'Component' else record['category']
        rows.append(dict(image=dict(bytes=png(picture), path=record['image']), name=name, short_names=record['short_names'],
                         emoji=characters(record['unified']), category=category, subcategory=record['subcategory'],
                         idea=idea(name, category), pixels=picture.tobytes()))
    return rows

def write(splits:dict, folder:Path):
    "One parquet file a split, with the features that `datasets` knows."
    for split, rows in splits.items():
        data = Dataset.from_dict({column: [row[column] for row in rows] for column in FEATURES}, features=FEATURES)
        data.to_parquet(folder/f'{split}-00000-of-00001.parquet')
        print(f'{split:>10} {len(rows):5} rows, {len({row["concept"] for row in rows}):5} concepts')

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--package', type=Path, help=f'unpacked {PACKAGE}')
    parser.add_argument('--names', type=Path, help=f'unpacked {NAMES}')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent/'emoji')
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        package = arguments.package or fetch(PACKAGE, Path(folder))
        names = arguments.names or fetch(NAMES, Path(folder))
        rows = read_rows(package, json.loads((names/'data-by-emoji.json').read_text(encoding='utf-8')))
    number_concepts(rows)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write(split_rows(rows), arguments.out)

if __name__ == '__main__': main()
