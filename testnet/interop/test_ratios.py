"""Goal: the comparison cannot call a missed floor met. Run by ``python3 -m unittest`` in this directory."""

import json
import pathlib
import unittest

import ratios


class Ratios(unittest.TestCase):
    def test_more_is_better_for_us_in_every_figure(self) -> None:
        for figure, (larger_is_better, _) in ratios.FIGURES.items():
            better, worse = (2.0, 1.0) if larger_is_better else (1.0, 2.0)
            self.assertEqual(ratios.ratio(figure, better, worse), 2.0, figure)
            self.assertEqual(ratios.ratio(figure, worse, better), 0.5, figure)

    def test_the_median_of_the_rounds_own_ratios_counts(self) -> None:
        # The machine was half as fast in the second round: both sides suffer, the ratio does not.
        rounds = [({"decode": 200.0}, {"decode": 100.0}), ({"decode": 100.0}, {"decode": 50.0})]
        rounds.append(({"decode": 210.0}, {"decode": 70.0}))
        told = ratios.summary(rounds)["decode"]
        self.assertEqual((told["ratio"], told["ratio_min"], told["ratio_max"]), (2.0, 2.0, 3.0))
        self.assertEqual(list(ratios.summary(rounds)), ["decode"], "what was not measured is absent")

    def test_aim_floor_and_miss_are_told_apart_and_a_missing_figure_is_a_miss(self) -> None:
        floors = {"m": {"prefill": [5.0, 3.75], "decode": [2.0, 1.5], "load": [1.0, 0.75], "memory": [1.0, 0.75]}}
        floors["not measured"] = {"prefill": [1.0, 1.0]}
        summaries = {"m": {"prefill": {"ratio": 5.0}, "decode": {"ratio": 1.5}, "load": {"ratio": 0.7499}}}
        told = {line["figure"]: line["met"] for line in ratios.verdicts(summaries, floors)}
        self.assertEqual(told, {"prefill": "aim", "decode": "floor", "load": "missed", "memory": "missed"})

    def test_floors_name_figures_that_exist_and_never_exceed_their_aim(self) -> None:
        floors = json.loads((pathlib.Path(__file__).parent / "floors.json").read_text())
        self.assertEqual(set(floors), {"native", "avx2"})
        for models in floors.values():
            for model, figures in models.items():
                for figure, (aim, floor) in figures.items():
                    self.assertIn(figure, ratios.FIGURES, model)
                    self.assertLessEqual(floor, aim, (model, figure))

    def test_agreement_ends_at_the_first_difference(self) -> None:
        self.assertEqual(ratios.same_tokens([[1, 2, 3, 4]], [[1, 2, 9, 4]]), [2])
        self.assertEqual(ratios.same_tokens([[1, 2]], [[1, 2, 3]]), [2])


if __name__ == "__main__":
    unittest.main()
