"""Phrasings of every attribute of the storybook world, and the orders in which sentences say them.

The "first" wording is the one that the first weights were trained on; its lists must not change, or the stories of a seed would.
The "rich" wording has all of it and more. The first phrasing of an attribute is its plain name in a prompt.
"""

from dataclasses import dataclass

Phrasings = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Wording:
    """Tables of phrasings by attribute value; `gaits` names moves of those that do not walk, by (gait, motion)."""

    actors: Phrasings
    places: Phrasings
    times: Phrasings
    weathers: Phrasings
    motions: Phrasings
    cameras: Phrasings
    templates: tuple[str, ...]
    objects: Phrasings
    companions: tuple[str, ...]  # ways to say that another actor is there, too
    object_ways: tuple[str, ...]  # ways to say that an object is there
    gaits: dict[tuple[str, str], tuple[str, ...]]


# Attributes whose plain sprite name would read oddly in a sentence, with their synonyms; other actors use their own name.
ACTOR_PHRASES: dict[str, tuple[str, ...]] = {
    "teddy bear": ("a teddy bear", "the teddy bear", "a brown teddy bear", "a stuffed bear", "a toy bear"),
    "panda": ("a panda", "the panda", "a panda bear", "a black and white panda", "a giant panda"),
    "astronaut": ("an astronaut", "the astronaut", "an astronaut in a white suit", "a spaceman", "a space traveller"),
    "t rex": ("a dinosaur", "the dinosaur", "a green dinosaur", "a t rex", "a tyrannosaurus"),
    "penguin": ("a penguin", "the penguin", "a little penguin", "a purple penguin", "a waddling penguin"),
    "octopus": ("an octopus", "the octopus", "an orange octopus", "a small octopus", "an octopus with pink arms"),
    "fox": ("a fox", "the fox", "a red fox", "an orange fox", "a little fox"),
    "unicorn": ("a unicorn", "the unicorn", "a pink unicorn", "a white unicorn with a horn", "a magical unicorn"),
}
PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "beach": ("on the beach", "along the beach", "by the sea", "at the seaside", "on the sand by the ocean"),
    "desert": ("in the desert", "across the desert", "in a hot dry desert", "among red rocks in the desert", "in the sandy desert"),
    "snowy forest": ("in the snowy forest", "in a forest full of snow", "in the snow", "in the winter woods", "on the snow among fir trees"),
    "city": ("in the city", "in a big city", "in front of skyscrapers", "downtown", "among the tall buildings of a city"),
    "underwater": ("underwater", "under the sea", "at the bottom of the sea", "deep under water", "on the ocean floor"),
    "meadow": ("in the meadow", "on a green meadow", "in a grassy field", "on the grass", "among green hills"),
}
TIME_PHRASES: dict[str, tuple[str, ...]] = {
    "day": ("by day", "in the daytime", "on a sunny day", "in daylight"),
    "sunset": ("at sunset", "in the evening", "at dusk", "in the light of the setting sun"),
    "night": ("at night", "by night", "in the dark of the night", "late at night"),
    "dawn": ("at dawn", "early in the morning", "at sunrise", "in the first light"),
}
WEATHER_PHRASES: dict[str, tuple[str, ...]] = {
    "clear": ("",),
    "rain": ("in the rain", "while it rains", "on a rainy day", "under falling rain"),
    "snow": ("while it snows", "in falling snow", "under snowflakes", "in a snowfall"),
    "leaves": ("among falling leaves", "while leaves fall", "with leaves in the wind", "in a shower of leaves"),
}
MOTION_PHRASES: dict[str, tuple[str, ...]] = {
    "stands": ("stands still", "is standing", "waits", "stays where it is", "does not move"),
    "walks left": ("walks to the left", "is walking left", "moves to the left", "strolls leftwards", "goes left"),
    "walks right": ("walks to the right", "is walking right", "moves to the right", "strolls rightwards", "goes right"),
    "hops": ("hops", "jumps up and down", "is hopping", "is jumping", "bounces up and down"),
    "runs left": ("runs to the left", "is running left", "races to the left", "dashes leftwards"),
    "runs right": ("runs to the right", "is running right", "races to the right", "dashes rightwards"),
    "flies up": ("flies up", "rises into the air", "floats upwards", "takes off"),
    "falls": ("falls down", "drops from the sky", "is falling", "comes down from above"),
    "spins": ("spins", "turns around and around", "is spinning", "whirls"),
    "grows": ("grows", "gets bigger and bigger", "is growing", "becomes huge"),
    "shrinks": ("shrinks", "gets smaller and smaller", "is shrinking", "becomes tiny"),
    "circles": ("goes round in circles", "circles in the air", "flies in circles", "moves in a circle"),
}
CAMERA_PHRASES: dict[str, tuple[str, ...]] = {
    "still": ("",),
    "pan": ("the camera pans", "the camera moves sideways", "a panning shot", "camera pan"),
    "zoom": ("the camera zooms in", "the camera comes closer", "a slow zoom", "camera zoom"),
}
# Orders of words: {a}ctor, {m}otion, {p}lace, {t}ime, {w}eather, {o}ther actor, {c}amera.
TEMPLATES = (
    "{a}{o} {m} {p} {t} {w}, {c}",
    "{t}, {a}{o} {m} {p} {w}, {c}",
    "{p}, {a}{o} {m} {t} {w}, {c}",
    "{a}{o} {m} {t} {p} {w}, {c}",
    "{c}, {a}{o} {m} {p} {w} {t}",
    "a video of {a}{o}, it {m} {p} {t} {w}, {c}",
)

# What the rich wording adds.
MORE_ACTORS: Phrasings = {
    "teddy bear": ("a cuddly teddy bear", "a plush teddy"),
    "panda": ("a friendly panda", "a round panda"),
    "astronaut": ("a spacewoman in a helmet", "an astronaut with a helmet"),
    "t rex": ("a fierce green dinosaur", "a tyrannosaurus rex"),
    "penguin": ("a penguin with a white belly", "a baby penguin"),
    "octopus": ("an octopus with big eyes", "a baby octopus"),
    "fox": ("a clever fox", "a sly orange fox"),
    "unicorn": ("a unicorn with a pink mane", "a fairytale unicorn"),
    "elephant": ("an elephant", "the elephant", "a grey elephant", "a big elephant", "an elephant with a long trunk", "a heavy grey elephant"),
    "tiger": ("a tiger", "the tiger", "a striped tiger", "an orange tiger", "a tiger with black stripes", "a wild tiger"),
    "giraffe": ("a giraffe", "the giraffe", "a tall giraffe", "a spotted giraffe", "a giraffe with a long neck", "a yellow giraffe"),
    "pig": ("a pig", "the pig", "a pink pig", "a little pink pig", "a fat pig", "a piglet"),
    "rabbit": ("a rabbit", "the rabbit", "a white rabbit", "a bunny", "a hare with long ears", "a little white bunny"),
    "parrot": ("a parrot", "the parrot", "a red parrot", "a colourful parrot", "a macaw", "a parrot with bright feathers"),
    "turtle": ("a turtle", "the turtle", "a green turtle", "a tortoise", "a turtle with a green shell", "a slow green turtle"),
    "automobile": ("a car", "the car", "a red car", "an automobile", "a red automobile", "a little red car"),
    "sauropod": ("a sauropod", "the sauropod", "a dinosaur with a long neck", "a long necked dinosaur", "a brontosaurus", "a diplodocus"),
    "cat": ("a cat", "the cat", "an orange cat", "a ginger cat", "a tabby cat", "a kitty with stripes"),
    "black cat": ("a black cat", "the black cat", "a dark cat", "a cat with black fur", "a witch cat", "a little black cat"),
    "dog": ("a dog", "the dog", "a yellow dog", "a puppy", "a friendly dog", "a light brown dog"),
    "horse": ("a horse", "the horse", "a brown horse", "a stallion", "a horse with a black mane", "a galloping brown horse"),
    "leopard": ("a leopard", "the leopard", "a spotted leopard", "a yellow leopard", "a leopard with dark spots", "a big spotted cat"),
    "monkey": ("a monkey", "the monkey", "a brown monkey", "a cheeky monkey", "a laughing monkey", "a monkey with a long tail"),
    "gorilla": ("a gorilla", "the gorilla", "a big gorilla", "a grey gorilla", "a strong gorilla", "a silverback gorilla"),
    "kangaroo": ("a kangaroo", "the kangaroo", "a brown kangaroo", "a kangaroo with big feet", "an australian kangaroo", "a light brown kangaroo"),
    "zebra": ("a zebra", "the zebra", "a striped zebra", "a black and white zebra", "a zebra with stripes", "a wild zebra"),
    "cow": ("a cow", "the cow", "a spotted cow", "a black and white cow", "a dairy cow", "a milk cow"),
    "ewe": ("a sheep", "the sheep", "a white sheep", "a woolly sheep", "a fluffy sheep", "a ewe"),
    "camel": ("a camel", "the camel", "a brown camel", "a dromedary", "a camel with one hump", "a sandy camel"),
    "deer": ("a deer", "the deer", "a brown deer", "a stag", "a deer with antlers", "a stag with big antlers"),
    "hedgehog": ("a hedgehog", "the hedgehog", "a prickly hedgehog", "a little hedgehog", "a brown hedgehog", "a hedgehog with spines"),
    "mammoth": ("a mammoth", "the mammoth", "a woolly mammoth", "a brown mammoth", "a mammoth with tusks", "a huge hairy mammoth"),
    "mouse": ("a mouse", "the mouse", "a little mouse", "a white mouse", "a small grey mouse", "a tiny mouse with a pink tail"),
    "snake": ("a snake", "the snake", "a green snake", "a long snake", "a coiled snake", "a serpent"),
    "dragon": ("a dragon", "the dragon", "a green dragon", "a fairytale dragon", "a dragon with a red back", "a chinese dragon"),
    "snail": ("a snail", "the snail", "a brown snail", "a slow snail", "a snail with a shell", "a little garden snail"),
    "whale": ("a whale", "the whale", "a blue whale", "a big whale", "a huge blue whale", "a whale with a white belly"),
    "dolphin": ("a dolphin", "the dolphin", "a blue dolphin", "a playful dolphin", "a clever dolphin", "a happy blue dolphin"),
    "shark": ("a shark", "the shark", "a grey shark", "a dangerous shark", "a great shark", "a shark with a sharp fin"),
    "fish": ("a fish", "the fish", "a blue fish", "a little blue fish", "a fish with blue fins", "a smiling fish"),
    "crab": ("a crab", "the crab", "a red crab", "a pink crab", "a crab with claws", "a crab with big pincers"),
    "duck": ("a duck", "the duck", "a mallard", "a duck with a green head", "a drake", "a wild duck"),
    "swan": ("a swan", "the swan", "a white swan", "an elegant swan", "a swan with a long neck", "a beautiful white swan"),
    "flamingo": ("a flamingo", "the flamingo", "a pink flamingo", "a flamingo with long legs", "a tall pink bird", "a rosy flamingo"),
    "owl": ("an owl", "the owl", "a brown owl", "an owl with big eyes", "a wise owl", "a little brown owl"),
    "peacock": ("a peacock", "the peacock", "a proud peacock", "a blue peacock", "a peacock with a green fan", "a peacock that shows its feathers"),
    "butterfly": ("a butterfly", "the butterfly", "an orange butterfly", "a monarch butterfly", "a butterfly with orange wings", "a big butterfly"),
    "honeybee": ("a bee", "the bee", "a honeybee", "a striped bee", "a busy bee", "a yellow and black bee"),
    "ghost": ("a ghost", "the ghost", "a white ghost", "a funny ghost", "a spook", "a ghost that sticks out its tongue"),
    "snowman": ("a snowman", "the snowman", "a snowman with a blue scarf", "a snowman in a hat", "a white snowman", "a jolly snowman"),
    "robot": ("a robot", "the robot", "a robot head", "a shiny robot", "a friendly robot", "a white robot with red ears"),
    "rocket": ("a rocket", "the rocket", "a space rocket", "a red and white rocket", "a rocket ship", "a spaceship with red fins"),
    "helicopter": ("a helicopter", "the helicopter", "an orange helicopter", "a chopper", "a little helicopter", "a rescue helicopter"),
    "flying saucer": ("a flying saucer", "the flying saucer", "a ufo", "an alien ship", "a grey saucer with a yellow beam", "an alien spacecraft"),
    "bus": ("a bus", "the bus", "an orange bus", "a city bus", "a coach", "a big orange bus"),
    "tractor": ("a tractor", "the tractor", "a green tractor", "a farm tractor", "a big green tractor", "a tractor with big wheels"),
    "locomotive": ("a locomotive", "the locomotive", "a train engine", "a steam engine", "a red and black locomotive", "a steam train"),
}
MORE_PLACES: Phrasings = {
    "beach": (
        "at the beach", "on the shore", "on the seashore", "at the edge of the sea", "where the ocean meets the sand",
        "beside the sea", "near the ocean", "by the shore", "next to the sea",
    ),
    "desert": ("in the dry land of red rocks and cactuses", "out in the desert"),
    "snowy forest": ("on a field of snow", "in a snowy winter landscape"),
    "city": ("in the middle of the city", "between skyscrapers"),
    "underwater": ("beneath the waves", "below the surface of the sea"),
    "meadow": ("on a green hill", "in the green meadow"),
    "jungle": ("in the jungle", "deep in the jungle", "in a tropical forest", "in the green rainforest", "among jungle trees", "in the thick jungle"),
    "volcano": ("at the volcano", "by the volcano", "among streams of lava", "in a land of lava", "near a fiery volcano", "in front of glowing lava"),
    "castle wall": (
        "in front of the castle", "by the castle", "at the old castle", "near the castle walls", "before a stone castle", "outside the castle",
    ),
    "wheat field": (
        "in the wheat field", "in a field of wheat", "in a golden field", "among ripe wheat", "on the farmland", "in the yellow cornfield",
    ),
    "red-trunk forest": (
        "in the forest", "in the woods", "among the trees of the forest", "between red tree trunks", "in a leafy forest", "deep in the woods",
    ),
    "red canyon": (
        "in the canyon", "in the red canyon", "among red cliffs", "between rocks of red stone", "in a rocky canyon", "in front of the red rocks",
    ),
    "village": (
        "in the village", "near a little village", "by the village houses", "in the countryside by a village", "at the edge of the village",
        "in a small village among hills",
    ),
    "sky with clouds": ("in the sky", "among the clouds", "high up in the clouds", "up in the sky", "in the cloudy sky", "above the clouds"),
    "pyramids": (
        "at the pyramids", "in front of the pyramids", "near the pyramids", "in egypt by the pyramids", "before an egyptian pyramid",
        "in the sand by a pyramid",
    ),
    "savanna": (
        "in the savanna", "on the african plain", "in the dry yellow grassland", "on the savanna", "in the yellow bush", "on a golden plain",
    ),
    "cave": ("in the cave", "in a dark cave", "inside a cave", "in a cavern of stone", "under the earth in a cave", "deep in the cave"),
    "temple columns": (
        "at the temple", "between temple columns", "in an ancient temple", "among greek columns", "in front of old pillars", "in the ruined temple",
    ),
    "spaceship": (
        "in the spaceship", "inside a spaceship", "on board a spaceship", "in a space station", "at the window of a spaceship", "aboard a starship",
    ),
    "Mars base": (
        "on mars", "on the red planet", "at the mars base", "in a colony on mars", "in front of white domes on mars", "at a space colony",
    ),
    "stone hall": (
        "in the stone hall", "in a castle hall", "inside the old castle", "in a hall with two windows", "in a room with stone walls",
        "indoors between stone walls",
    ),
    "arena": (
        "in the arena", "in a roman arena", "in the colosseum", "in an ancient stadium", "on the sand of the arena", "before the arches of an arena",
    ),
    "pagoda": (
        "at the pagoda", "in front of the pagoda", "by a japanese temple", "near a pagoda", "before an asian palace", "in a japanese courtyard",
    ),
}
RICH_TIMES: Phrasings = {  # without "on a sunny day", since it may rain then
    "day": ("by day", "in the daytime", "in daylight", "in the middle of the day", "at noon", "in broad daylight"),
    "sunset": (*TIME_PHRASES["sunset"], "while the sun goes down", "as the sun sets"),
    "night": (*TIME_PHRASES["night"], "in the night", "after dark"),
    "dawn": (*TIME_PHRASES["dawn"], "at daybreak", "as the sun rises"),
}
RICH_WEATHERS: Phrasings = {  # without "on a rainy day", since it may be night then
    "clear": ("",),
    "rain": ("in the rain", "while it rains", "under falling rain", "in pouring rain", "as raindrops fall", "in a rain shower"),
    "snow": (*WEATHER_PHRASES["snow"], "in the falling snow", "as snowflakes fall"),
    "leaves": (*WEATHER_PHRASES["leaves"], "as leaves blow past", "in a swirl of green leaves"),
}
MORE_MOTIONS: Phrasings = {
    "stands": ("is standing still", "rests in one spot"),
    "walks left": ("wanders off to the left", "takes a walk to the left"),
    "walks right": ("wanders off to the right", "takes a walk to the right"),
    "hops": ("jumps on the spot", "is bouncing"),
    "runs left": ("rushes to the left", "hurries to the left", "sprints left"),
    "runs right": ("rushes to the right", "hurries to the right", "sprints right"),
    "flies up": ("goes up into the sky", "is flying upwards", "soars up"),
    "falls": ("falls through the air", "plunges downwards", "tumbles down"),
    "spins": ("rotates", "turns round like a wheel", "keeps turning around"),
    "grows": ("becomes bigger", "swells up", "keeps growing larger"),
    "shrinks": ("becomes smaller", "dwindles", "keeps getting smaller"),
    "circles": ("flies around in a circle", "makes circles in the air", "loops around"),
}
MORE_CAMERAS: Phrasings = {
    "pan": ("while the camera slides sideways", "with a moving camera"),
    "zoom": ("while the camera zooms in", "in a closer and closer shot"),
}
GAITS: dict[tuple[str, str], tuple[str, ...]] = {
    ("swims", "stands"): ("stays still", "floats in one place", "waits", "does not move", "rests in one spot", "hangs still"),
    ("swims", "walks left"): ("swims to the left", "is swimming left", "moves to the left", "glides leftwards", "goes left", "drifts to the left"),
    ("swims", "walks right"): (
        "swims to the right", "is swimming right", "moves to the right", "glides rightwards", "goes right", "drifts to the right",
    ),
    ("swims", "runs left"): ("races to the left", "swims quickly to the left", "darts left", "rushes to the left", "shoots leftwards"),
    ("swims", "runs right"): ("races to the right", "swims quickly to the right", "darts right", "rushes to the right", "shoots rightwards"),
    ("flies", "stands"): ("hovers in one place", "stays in the air", "hovers", "floats on the spot", "does not move", "hangs in the air"),
    ("flies", "walks left"): ("flies to the left", "is flying left", "moves to the left", "floats leftwards", "goes left", "drifts to the left"),
    ("flies", "walks right"): (
        "flies to the right", "is flying right", "moves to the right", "floats rightwards", "goes right", "drifts to the right",
    ),
    ("flies", "runs left"): ("speeds to the left", "flies fast to the left", "races to the left", "rushes to the left", "shoots leftwards"),
    ("flies", "runs right"): ("speeds to the right", "flies fast to the right", "races to the right", "rushes to the right", "shoots rightwards"),
    ("drives", "stands"): ("stands still", "is parked", "waits", "stays where it is", "does not move", "has stopped"),
    ("drives", "walks left"): ("drives to the left", "is driving left", "moves to the left", "rolls leftwards", "goes left", "rides to the left"),
    ("drives", "walks right"): (
        "drives to the right", "is driving right", "moves to the right", "rolls rightwards", "goes right", "rides to the right",
    ),
    ("drives", "runs left"): ("speeds to the left", "drives fast to the left", "races to the left", "rushes to the left", "zooms off to the left"),
    ("drives", "runs right"): (
        "speeds to the right", "drives fast to the right", "races to the right", "rushes to the right", "zooms off to the right",
    ),
}
OBJECT_PHRASES: Phrasings = {
    "red apple": ("a red apple", "an apple", "a ripe apple", "a juicy red apple", "a big apple"),
    "soccer ball": ("a ball", "a soccer ball", "a football", "a blue and white ball", "a round ball"),
    "mushroom": ("a mushroom", "a red mushroom", "a toadstool", "a mushroom with white dots", "a spotted mushroom"),
    "wrapped gift": ("a gift", "a present", "a wrapped present", "a yellow gift box", "a gift with a red bow"),
    "birthday cake": ("a birthday cake", "a cake", "a cake with candles", "a big birthday cake", "a party cake"),
    "fire": ("a fire", "a campfire", "a burning fire", "flames", "a bright flame"),
    "guitar": ("a guitar", "a red guitar", "an electric guitar", "a rock guitar", "a guitar that lies there"),
    "sunflower": ("a sunflower", "a yellow sunflower", "a big yellow flower", "a blooming sunflower", "a tall flower"),
    "fountain": ("a fountain", "a stone fountain", "a fountain with water", "a splashing fountain", "a water fountain"),
    "cactus": ("a cactus", "a green cactus", "a prickly cactus", "a tall cactus", "a spiny cactus"),
    "tent": ("a tent", "a green tent", "a camping tent", "a pitched tent", "a little tent"),
    "christmas tree": ("a christmas tree", "a decorated tree", "a decorated fir tree", "a christmas tree with a star", "a festive tree"),
    "palm tree": ("a palm tree", "a palm", "a tall palm tree", "a coconut palm", "a tropical palm tree"),
    "house": ("a house", "a little house", "a house with a red roof", "a cottage", "a cosy home"),
}
# An ob{j}ect comes with its preposition.
MORE_TEMPLATES = (
    "{a}{o} {m} {j} {p} {t} {w}, {c}",
    "{t}, {a}{o} {m} {j} {p} {w}, {c}",
    "{p}, {a}{o} {m} {j} {w} {t}, {c}",
    "{p} {t}, {a}{o} {m} {j} {w}, {c}",
    "{t} {p}, {a}{o} {m} {j} {w}, {c}",
    "{a}{o} {p} {m} {j} {t} {w}, {c}",
    "{c}, {a}{o} {m} {j} {p} {w} {t}",
    "{a}{o} {j} {m} {p} {t} {w}, {c}",
    "{w}, {a}{o} {m} {j} {p} {t}, {c}",
    "we see {a}{o}, it {m} {j} {p} {t} {w}, {c}",
    "here is {a}{o}, it {m} {j} {p} {t} {w}, {c}",
    "a video of {a}{o} that {m} {j} {p} {t} {w}, {c}",
    "a story about {a}{o} that {m} {j} {p} {w} {t}, {c}",
    "a film of {a}{o} that {m} {j} {t} {p} {w}, {c}",
    "a picture book scene, {a}{o} {m} {j} {p} {t} {w}, {c}",
)
OBJECT_WAYS = ("next to {}", "beside {}", "near {}", "by {}", "close to {}")
COMPANION_WAYS = ("with {}", "together with {}", "in the company of {}", "accompanied by {}", "joined by {}")


def _more(base: Phrasings, added: Phrasings) -> Phrasings:
    return {name: base.get(name, ()) + added.get(name, ()) for name in (*base, *(name for name in added if name not in base))}


WORDINGS: dict[str, Wording] = {
    "first": Wording(
        ACTOR_PHRASES, PLACE_PHRASES, TIME_PHRASES, WEATHER_PHRASES, MOTION_PHRASES, CAMERA_PHRASES, TEMPLATES,
        objects=OBJECT_PHRASES, companions=("with {}",), object_ways=OBJECT_WAYS, gaits={},
    ),
    "rich": Wording(
        _more(ACTOR_PHRASES, MORE_ACTORS), _more(PLACE_PHRASES, MORE_PLACES), RICH_TIMES, RICH_WEATHERS,
        _more(MOTION_PHRASES, MORE_MOTIONS), _more(CAMERA_PHRASES, MORE_CAMERAS), MORE_TEMPLATES,
        objects=OBJECT_PHRASES, companions=COMPANION_WAYS, object_ways=OBJECT_WAYS, gaits=GAITS,
    ),
}  # fmt: skip
