"""Plain English for calibrating gates: concrete nouns, styles, and compounds that are not what their last word says."""

__all__ = ["CAPTIONS", "COMPOUNDS", "LOOKALIKES", "NOUNS", "STYLES", "known_words"]


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in text.split(",") if phrase.strip())


NOUNS = _phrases("""
cat, dog, wolf, fox, lion, tiger, leopard, cheetah, panther, lynx, bear, panda, koala, horse, donkey, zebra, cow,
bull, buffalo, pig, sheep, goat, deer, moose, camel, giraffe, elephant, rhinoceros, hippopotamus, monkey, gorilla,
kangaroo, rabbit, hare, squirrel, hamster, mouse, rat, beaver, otter, hedgehog, raccoon, skunk, bat, seal, walrus,
whale, dolphin, shark, fish, salmon, octopus, squid, crab, lobster, shrimp, frog, toad, snake, lizard, crocodile,
turtle, tortoise, dinosaur, dragon, unicorn, bird, eagle, hawk, owl, parrot, pigeon, crow, raven, swan, goose, duck,
chicken, rooster, turkey, penguin, ostrich, flamingo, peacock, butterfly, moth, bee, wasp, ant, beetle, ladybug,
spider, scorpion, fly, mosquito, grasshopper, snail, worm, tree, oak, palm, pine, bush, grass, flower, rose, tulip,
sunflower, daisy, lily, orchid, cactus, mushroom, leaf, fern, apple, pear, peach, plum, cherry, strawberry, raspberry,
grape, orange, lemon, lime, banana, pineapple, mango, melon, watermelon, coconut, avocado, tomato, potato, carrot,
onion, garlic, pepper, cucumber, corn, cabbage, pumpkin, bread, cheese, egg, butter, pizza, hamburger, sandwich, taco,
sushi, noodles, soup, salad, cake, cookie, pie, doughnut, chocolate, candy, honey, ice cream, coffee, tea, milk,
juice, wine, beer, bottle, cup, mug, glass, plate, bowl, fork, knife, spoon, pan, kettle, oven, house, castle, church,
temple, tower, bridge, barn, tent, lighthouse, skyscraper, factory, school, hospital, windmill, statue, fountain,
door, window, stairs, chair, table, sofa, bed, lamp, mirror, carpet, clock, watch, book, newspaper, pen, pencil,
paper, scissors, envelope, map, globe, phone, computer, keyboard, television, radio, camera, printer, robot, car,
taxi, bus, truck, tractor, ambulance, motorcycle, bicycle, scooter, train, tram, boat, ship, sailboat, submarine,
airplane, helicopter, rocket, balloon, parachute, sun, moon, star, cloud, rain, snow, lightning, rainbow, mountain,
volcano, river, lake, ocean, beach, island, desert, forest, field, garden, road, city, village, man, woman, boy, girl,
baby, king, queen, knight, pirate, soldier, doctor, chef, astronaut, clown, wizard, witch, ghost, vampire, zombie,
skeleton, skull, devil, angel, mermaid, alien, snowman, scarecrow, hat, crown, helmet, cap, shirt, dress, skirt,
trousers, coat, shoe, boot, sock, glove, scarf, tie, belt, ring, necklace, umbrella, bag, suitcase, basket, box, key,
lock, hammer, saw, axe, shovel, ladder, nail, screw, rope, anchor, wheel, engine, candle, torch, lantern, fire, sword,
shield, bow, arrow, gun, cannon, bomb, guitar, violin, piano, drum, trumpet, flute, harp, ball, football, basketball,
kite, doll, puppet, puzzle, dice, gift, medal, trophy, flag, bell, heart, eye, hand, foot, nose, ear, tooth, bone,
feather, egg, nest, shell, diamond, coin, telescope, microscope, magnet, battery, syringe, pill, animal, insect,
reptile, plant, fruit, vegetable, food, drink, building, vehicle, tool, weapon, toy, person, face
""")
"""Concrete nouns, near neighbours together."""

STYLES = _phrases("""
neon, 3d, flat, pixel art, pencil sketch, blueprint, cartoon, silhouette, halftone, watercolour, watercolor, stained
glass, mosaic, oil painting, impressionist, cubist, art deco, art nouveau, pop art, comic, anime, manga, line art,
charcoal, pastel, crayon, origami, paper cut, low poly, isometric, vector, woodcut, linocut, engraving, embroidery,
knitted, claymation, ukiyo-e, graffiti, sepia, vintage, minimalist, cyberpunk, steampunk, gothic, baroque, surrealist,
photorealistic, chalk, ink
""")
"""Styles, for concepts that are a way of drawing."""

COMPOUNDS = _phrases("""
hot dog, prairie dog, corn dog, dog rose, sea lion, dandelion, ant lion, sea horse, rocking horse, clothes horse,
sawhorse, guinea pig, teddy bear, gummy bear, koala bear, red panda, catfish, catwalk, cat tail, cattail, cat's eye,
cat burglar, caterpillar, sea cucumber, starfish, jellyfish, cuttlefish, dragonfly, dragon fruit, butterfly,
buttercup, ladybird, bird cage, birdhouse, bird house, scarecrow, cherry tomato, cherry blossom, rose hip, rose
window, compass rose, snake plant, spider plant, spider web, spider-man, spiderman, tiger lily, tiger shark, whale
shark, crab apple, apple pie, pineapple, custard apple, adam's apple, horse chestnut, horseradish, horseshoe,
foxglove, wolfsbane, cow bell, cowboy, cowgirl, egg plant, eggplant, toadstool, mousepad, computer mouse, mouse pad,
piggy bank, monkey wrench, monkey bars, duct tape, goosebumps, doghouse, dog house, cat flap, car park, carpet, cable
car, railcar, cup cake, cupcake, pancake, cheesecake, sun dial, sundial, sunglasses, sunflower, moonshine, star wars,
rock star, movie star, star trek, pop star, keyboard, key lime, light house, lighthouse, greenhouse, power plant,
house plant, football, handball, snowball, fireball, meatball, basketball, moth ball, crow bar, crowbar, hammerhead,
hammerhead shark, shipwreck, spaceship, space ship, fire truck, doughnut, nutcracker, bullfrog, bulldozer, bulls eye,
parking meter
""")
"""Names of other things that contain the name of a thing; never taken for it, calibrated or not."""

CAPTIONS = (
    "my holiday in the south of france",
    "i would like to see something really beautiful today",
    "your best idea ever, made with love",
    "these are the days of our lives",
    "he was running through the market with his sister",
    "she whispered a secret behind the curtain",
    "award winning design, trending, sharp focus, 4k",
    "a masterpiece by an unknown artist",
    "cinematic lighting, volumetric fog, wide angle lens",
    "minimal logo for a startup company",
    "the quick journey of an ordinary family",
    "what is this? nobody knows!",
    "happy new year 2024",
    "old friends meeting again after many years",
    "black and white portrait of an elderly lady",
    "a busy street during rush hour",
    "interior of a modern kitchen, bright colours",
    "floating geometric forms, purple gradient",
    "handwritten letter on yellow parchment",
    "crowd waving at a concert, confetti",
    "close-up of wet skin with freckles",
    "an ancient ruin overgrown by vines",
    "warm summer evening on the balcony",
    "texture of rough concrete and rust",
    "some very weird and wonderful machinery",
    "the meaning of freedom, expressed in three shapes",
    "wedding invitation with ornate border",
    "infographic about economic growth",
    "zqxj vrrm kloptw",
    "foggy morning, nobody around, silence",
    "a favor for somebody special",
    "hand drawn doodle, quirky and cute",
)
"""Sentences about nothing in particular, so that a fit sees words that no template holds."""

LOOKALIKES = _phrases("""
act, acts, god, gods, loin, loins, form, from, form, brae, bare, bred, money, thicken, timer, tier, tiers, titer,
trucks, trick, track, trunk, trail, trait, drain, brain, strain, plant, planet, plan, plans, place, plane, clown,
grown, frown, brown, cattle, break, bead, beard, hose, house, nurse, habit, flow, flowed, floor, flour, carton,
sketchy, stretch, switch, snarl, snails, sharp, share, shark, shank, spark, spider, cloak, click, block, clocks,
match, water, short, shirt, skirt, shift, smart, stair, stare, start, steam, stream, storm, store, stove, story,
still, steel, steal, steep, sheep, sheet, sleep, sleet, sweep, sweet, tower, towel, power, flower, lower, candle,
candy, handle, castle, couch, cough, coach, beach, bench, bunch, brunch, branch, brush, crush, crash, trash, crane,
crate, crater, create, grape, grade, grace, grate, great, greet, green, melon, felon, demon, lemur, lemons, pearl,
pears, reach, teach, preach, peace, perch, pouch, punch, orang, manga, mango, paint, pint, point, print, saint, faint,
party, parity, parrot, carrot, carriage, carrier, eager, angle, angel, ankle, uncle, whole, while, white, wheat,
where, wheel, dress, press, dreams, drums, queue, queer, quern, crow, crows, cow, row, heard, heart, hearth, earth,
ghosts, host, goats, gloat, float, robots, rocks, rocky, rockets, pocket, racket, jacket, socket, bucket, ticket,
packet, guilt, quilt, built, hammers, anchors, anger, hunger, dagger, bigger, digger, trigger, pizzas, piazza, piano,
pieces, snack, snake, snare, share, shake, spare, space, spice, spoke, smoke, smile, spike, strike, stripe, string,
spring, sprint, train, rain, grain, chain, chair, choir, char, chart, charm, chasm, casual, causal, camel, cameo,
comet, comic, conic, cones, bones, bored, bread, broad, board, beards, dolls, dollar, collar, color, colour, cooler,
cheer, chess, cheese, choose, chose, close, clothes, cloths, cloud, could, clod, world, word, sword, swords, score,
scare, scarf, scar, scarce, deer, dear, door, doctor, factor, tractor, actor, author, sausage, message, massage,
passage, muscle, mussel, mousse, moose, mouse, mouth, month, moth, moths, mother, other, otters, bother, brother,
broth, both, booth, boots, boost, roost, roast, toast, coast, cost, ghost, most, wolfs, golf, gulf, flap, flag, flags,
float, feather, father, farther, weather, leather, heather, lather, rather, gather, owls, owl, bowl, bowls, howl,
towels, vowel, trowel, novel, navel, naval, gravel, travel, label, lapel, chapel, camper, hamper, damper, dumper,
bumper, number, lumber, timber, member, ember
""")
"""Common words that one slip of the finger could make of another; they are words, not slips."""


def known_words() -> frozenset[str]:
    """Return every single word of the lists above, in lower case."""
    lists = (*NOUNS, *STYLES, *COMPOUNDS, *LOOKALIKES)
    return frozenset(word for phrase in lists for word in phrase.replace("-", " ").split())
