"""Problems and a verifier of your own: one small iteration of the whole loop, in about a minute.

``python -m deployments.examples.own_problems_and_verifier`` trains the model that comes with Coppice on questions whose
answer is a range, 40..44; files and results lie below ``COPPICE_HOME``. In a shell each setting is an argument:
``coppice run --preset tiny --set problems.dataset=file --set grader=my_module:verify …``.
"""

import json
import re
from pathlib import Path

import rich

from deployments.environment import prepare_environment
from deployments.presets import preset
from pipeline_lib.config import Settings, apply_overrides

OWN = ["problems.dataset=file", "grader=deployments.examples.own_problems_and_verifier:verify"]
OWN += ["policy.instruction="]  # nothing is added to a question: the tiny model was taught on bare ones
SMALL = ["num_iterations=1", "problems.num_problems=96", "problems.num_validation=32", "search.num_simulations=8"]
SMALL += ["train.tokens_per_update=1024", "evaluation.num_samples=0"]


def verify(prediction: str, gold: str) -> bool:
    """Whether a solution's last number lies in the gold's range; called in worker processes, which import this file."""
    low, high = gold.split("..")
    numbers = re.findall(r"-?\d+", prediction)
    return bool(numbers) and int(low) <= int(numbers[-1]) <= int(high)


def write_problems(path: Path, numbers: range) -> None:
    """One JSON object per line with the fields `question` and `answer`; CSV and Parquet would do as well."""
    with path.open("w", encoding="utf-8") as file:
        for n in numbers:
            have, bags, each, given = 5 + 7 * n % 40, 2 + n % 7, 2 + n % 8, 1 + n % 5
            story = f"Mia has {have} pens. Mia buys {bags} bags with {each} in each. Mia gives away {given}."
            pens = have + bags * each - given
            row = {"question": f"{story} How many pens does Mia have now?", "answer": f"{pens - 2}..{pens + 2}"}
            file.write(json.dumps(row) + "\n")


def main() -> None:
    """Runs the flow and prints how many problems each policy answers within the range."""
    prepare_environment(Settings())  # Prefect reads its settings when it is imported, so the flow comes after
    from flows.self_training import self_training

    folder = Settings().home.resolve() / "own-problems"
    folder.mkdir(parents=True, exist_ok=True)
    write_problems(folder / "train.jsonl", range(128))
    write_problems(folder / "test.jsonl", range(128, 160))
    files = [f"problems.path={folder}/train.jsonl", f"evaluation.datasets=file={folder}/test.jsonl"]
    result = self_training(apply_overrides(preset("tiny"), [*OWN, *SMALL, *files]))
    for record in result.records:
        right = (f"{each.num_correct} of {each.num_problems} {each.split}" for each in record.evaluations)
        rich.print(f"iteration {record.index}: {', '.join(right)} problems within the range")
    rich.print(f"champion: iteration {result.decision.champion}; {result.stopped_because}")


if __name__ == "__main__":
    main()
