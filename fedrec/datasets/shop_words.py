"""The words of the made-up shop: departments with what they sell, and two styles of each that a title names.

No word occurs twice, so that each tells its topic or its style. A shop with more topics or styles than there are here
goes on with made-up words.
"""

from __future__ import annotations

import re

NOUNS = 16
"""Things that each department sells."""

ADJECTIVES = 5
"""Words of each style."""

_DEPARTMENTS = """
camping: tent lantern hammock stove backpack canteen compass tarp cooler rucksack bedroll firestarter flask headlamp
    campstool axe / alpine rugged windproof stormproof expedition / family roomy lakeside weekend inflatable
coffee: grinder espresso percolator mug roaster dripper frother carafe tamper portafilter moka creamer pitcher
    demitasse capsule beans / barista steel commercial calibrated pressurised / slow handmade enamelled ceramic
    pourover
tea: teapot kettle infuser matcha oolong sencha rooibos chai teacup caddy strainer saucer samovar chamomile
    darjeeling gaiwan / japanese ceremonial bamboo zen umami / english floral afternoon porcelain victorian
running: sneaker singlet shorts visor pacer stopwatch gaiter sock hydration windbreaker legging pedometer insole
    shoelace racer treadmill / trail muddy grippy mountain offroad / marathon featherweight cushioned asphalt sprint
cycling: helmet saddle handlebar pedal derailleur chainring wheelset jersey pannier bell pump crankset brake spoke
    mudguard bikelock / gravel touring steadfast randonneur leather / aero carbon velodrome competition slick
fitness: dumbbell kettlebell barbell bench mat roller rope stepper gloves strap plate rack trampoline pullover
    bolster sandbag / powerlifting ironclad heavy knurled olympic / yogic gentle stretching mindful balanced
gardening: trowel rake spade hose planter wheelbarrow secateurs sprinkler compost trellis seedling fertiliser hoe
    bulbs greenhouse cloche / vegetable organic allotment rustproof harvest / ornamental blooming rosy balcony
    cottage
baking: whisk cupcake tin spatula sifter icing muffin dough yeast cutter springform proofer banneton piping
    sourdough flour / rustic wholegrain crusty artisan stoneground / sugary pastel party frosted celebration
kitchen: knife skillet saucepan wok cleaver colander ladle grater peeler casserole chopper tongs mandoline stockpot
    griddle mortar / damascus forged professional chef hammered / nonstick everyday colourful stackable compact
painting: easel brush canvas watercolour acrylic palette varnish gesso crayon charcoal sketchbook ink gouache
    pigment primer stencil / studio archival oil fine masterly / kids washable beginner jolly chunky
yarn: yarn needle crochet skein bobbin spindle wool cardigan mitten pattern raglan loom thimble hoop thread shawl /
    nordic bulky felted woodland undyed / lacy silken delicate mohair gossamer
stationery: notebook pen pencil eraser stapler envelope ruler binder highlighter planbook postcard sharpener marker
    inkwell folder stamp / executive minimalist grid letterpress monochrome / kawaii glittery scented doodle rainbow
photography: camera lens tripod flash shutter film gimbal lightmeter viewfinder polariser softbox album backdrop
    teleconverter lenscap darkroom / analogue vintage rangefinder instant retro / mirrorless cinematic stabilised
    megapixel telephoto
guitar: guitar capo amplifier pedalboard ukulele plectrum strings fretboard banjo tuner mandolin songbook slide
    metronome bass pickup / acoustic folk spruce fingerstyle campfire / electric distorted metal humbucking stage
audio: headphones speaker turntable earbuds subwoofer soundbar microphone receiver cassette equaliser radio cable
    cartridge jukebox preamp boombox / audiophile valve lossless walnut reference / wireless sporty bluetooth
    waterproof pocket
games: controller console joystick keyboard mouse headset monitor dice chessboard cards puzzle boardgame miniature
    dungeon token scoreboard / esports mechanical illuminated rapid ergonomic / cooperative fantasy tabletop
    strategic collectible
toys: blocks doll train robot kite marbles yoyo puppet teddy dollhouse racetrack slinky rocket drum dinosaur
    carousel / wooden montessori classic handpainted heirloom / beeping programmable flashing turbo galactic
nursery: stroller crib pacifier bib rattle diaper highchair swaddle cradle playpen bottle onesie teether carrycot
    bathtub nightlight / cotton hypoallergenic soothing neutral breathable / foldable travel swift reclining
    allterrain
pets: leash collar kennel aquarium birdcage catnip kibble litter hamster hutch harness feeder terrarium groomer
    perch chewstick / canine sturdy outdoor chewproof reflective / tabby plush cosy purring indoor
fishing: rod reel lure bait tackle waders hook sinker net float bobber line gaff jig spool icebox / saltwater
    deepsea trolling harbour corrosionproof / fly river trout barbless feathered
"""

_COMMON = """
    quality value durable gift bestseller season popular original premium standard model series edition set pack size
    large small medium black white blue green red grey warm strong simple modern practical reliable favourite choice
    home daily special limited improved new easy
"""


def departments() -> list[tuple[list[str], list[list[str]]]]:
    """Of each department the things that it sells, `NOUNS` words, and the words of its styles, `ADJECTIVES` each."""
    listed = [[part.split() for part in text.split("/")] for text in re.split(r"\w+:", _DEPARTMENTS)[1:]]
    return [(nouns, styles) for nouns, *styles in listed]


def common() -> list[str]:
    """Words that tell nothing of an item."""
    return _COMMON.split()
