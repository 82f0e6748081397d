//! Texts to continue: short and long, in several languages and scripts, prose, code and lists. Some repeat
//! themselves, which is what guessing ahead lives on.

/// They are independent of each other, and the first few are as varied as the rest.
pub(crate) const PROMPTS: [&str; 32] = [
    "What is the capital of France, and what is the capital of Italy?",
    "one two three four one two three four one two three four one two three four one two",
    "Eine Allmend ist gemeinschaftlich genutztes Land: Wiese, Wald oder Alp. Erkläre in zwei Sätzen, wer sie \
     nutzen darf und wer über die Nutzung entscheidet.",
    "fn main() {\n    let numbers = vec![1, 2, 3];\n    for number in",
    "List five animals that live in the Alps.",
    "Il était une fois, dans un village au bord du lac,",
    "Translate into German: The herd goes up to the summer pasture in June and comes back in September.",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "Hi!",
    "Il bosco comune del paese è stato diviso tra le famiglie nel 1803, perché",
    "Summarise the following text in one sentence. The commons of a village were never free for all. Who \
     could graze how many animals, from which day on and on which slope, was written down, sometimes for \
     centuries, and changed by those who had a share in it. Those who took more than their share paid a \
     fine; those who mended the fences, cleared stones and kept the paths open were credited with hours of \
     work. Economists long held that land which belongs to all must be ruined by all. Elinor Ostrom \
     collected cases, many of them from Alpine valleys, in which that had not happened in five hundred \
     years, and described what these had in common: clear borders, rules that fit the place, a say for \
     those concerned, watchers who answer to them, penalties that begin mildly, and a cheap way to settle \
     disputes. None of this is a machine, and none of it works without people who care; but much of it can \
     be written down.",
    "El pastor contó sus ovejas y se dio cuenta de que",
    "Write a haiku about snow.",
    "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the lazy dog. The quick \
     brown fox jumps over",
    "Wie viele Kantone hat die Schweiz? Nenne drei davon und ihre Hauptorte.",
    "SELECT name, COUNT(*) FROM members JOIN shares ON",
    "Explain to a child why the sky is blue.",
    "{\"name\": \"Anna\", \"village\": \"Zermatt\", \"cows\": 12}\n{\"name\": \"Boris\", \"village\":",
    "日本の首都はどこですか。",
    "Καλημέρα! Πώς είσαι σήμερα;",
    "Count from one to twenty in words.",
    "Сегодня утром в горах выпал снег, и пастухи",
    "What follows is a dialogue.\nA: Who owns the forest?\nB: All of us.\nA: Who cuts the wood?\nB: Whoever \
     the assembly names.\nA: Who pays for the path?\nB:",
    "# Shopping list\n\n- bread\n- milk\n- cheese\n-",
    "If a train leaves at 10:15 and takes 2 hours and 50 minutes, when does it arrive? Think step by step.",
    "الماء هو",
    "Name the planets of the solar system in order, one per line, with one property of each.",
    "In the beginning the herd was small, and the meadow was wide, and nobody counted. Then came a dry \
     summer. The brook shrank to a thread, the grass turned yellow before the end of July, and every morning \
     there were more animals at the trough than the day before. The elders met under the lime tree. One \
     said that each should do as he pleased; another that the strongest would then do so; a third, who had \
     been silent, drew lines into the dust, one for each household, and said:",
    "Compare a sonnet with a limerick. Then write one of each about cheese.",
    "0 1 1 2 3 5 8 13 21 34",
    "Write a polite letter to a neighbour whose goats have been eating your roses. Mention the fence, offer \
     help with mending it, and thank him for the cheese he gave you last winter. 🐐🌹",
    "A",
];
