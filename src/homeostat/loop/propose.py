"""Which candidates to try: those that fit, in the order of what earlier trials in the journal came to.

The proposer is a contextual bandit whose history is the journal. An option o (a remedy) in a context k (the kind of
shift that was diagnosed) has a gain theta_ok, and the trials seen are noisy looks at it:

    mu_o ~ N(prior, between^2),    theta_ok ~ N(mu_o, within^2),    gain ~ N(theta_ok, noise^2),

so that what was learnt of a remedy in one kind of shift tells a little of it in another. The posterior is in closed
form; the option with the highest optimistic value, posterior mean plus `explore` standard deviations, is taken.

The safe default is to try nothing, whose gain is known to be 0: an option whose optimistic value is not above it is not
worth a trial. Whatever is tried runs in shadow, so that trying costs time and never an answer. Where candidates were
rehearsed on simulated shifts, these count as trials that were seen.

Reference: Li, Chu, Langford, Schapire, "A contextual-bandit approach to personalized news article recommendation",
WWW 2010 (optimism); Gelman and Hill, "Data analysis using regression and multilevel models", 2007 (the pooling).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from homeostat.core.run import Run
from homeostat.core.spec import NonNegative, Positive
from homeostat.core.trace import Choose, Trace

NOTHING = "nothing"
"""The option of trying nothing, whose gain is 0."""


@dataclass(frozen=True)
class ByRecord(Choose):
    """Takes the option with the best record in the trace: mean gain of its trials, drawn towards `prior`.

    An option's record is the readings named `"gain"` of entries whose subject is the option's name. Untried options
    count as `prior` with the weight of one trial, so that they come before those that failed, after those that helped.

    Attributes:
        prior: the gain that an untried option is thought to have.

    >>> ByRecord()(Trace(), ["EATA", "LAME"])
    0
    """

    prior: NonNegative = 0.01

    def choose(self, trace: Trace, options: Sequence[str], run: Run) -> int:
        def record(option: str) -> float:
            if option == NOTHING:
                return 0.0
            gains = [r.value for e in trace if e.subject == option for r in e.readings if r.name == "gain"]
            return (sum(gains) + self.prior) / (len(gains) + 1)

        return max(range(len(options)), key=lambda i: (record(options[i]), -i))


@dataclass(frozen=True)
class Bandit(Choose):
    """A contextual bandit: takes the option that may gain most in the present context; see the module's docstring.

    Options are names. A trial is an entry whose subject is an option's name, whose `where` is the context and which has
    a reading `"gain"`. The present context is the `where` of the trace's last entry.

    Attributes:
        prior: gain that an untried option is thought to have.
        between: standard deviation of gains between options.
        within: standard deviation of an option's gain between contexts.
        noise: standard deviation of a trial's gain around that.
        explore: standard deviations of optimism; 0 is greedy.

    >>> from homeostat.core.reading import Reading
    >>> from homeostat.core.trace import Entry
    >>> trial = lambda name, kind, gain: Entry(0, name, kind, (Reading("gain", gain),))
    >>> seen = Trace((trial("EATA", "covariate", 0.2), trial("EATA", "label", -0.2), trial("LAME", "label", 0.1)))
    >>> [Bandit()(seen.add(Entry(1, "diagnosis", kind)), ["EATA", "LAME"]) for kind in ("covariate", "label")]
    [0, 1]
    """

    prior: NonNegative = 0.02
    between: Positive = 0.1
    within: Positive = 0.1
    noise: Positive = 0.05
    explore: NonNegative = 0.5

    def choose(self, trace: Trace, options: Sequence[str], run: Run) -> int:
        context = trace.entries[-1].where if len(trace) else ""
        # Of equals the first, which is the caller's preference.
        return max(range(len(options)), key=lambda i: (self.optimistic(trace, options[i], context), -i))

    def optimistic(self, trace: Trace, option: str, context: str) -> float:
        """Posterior mean plus `explore` standard deviations of an option's gain in a context."""
        if option == NOTHING:
            return 0.0
        gains: dict[str, list[float]] = defaultdict(list)
        for entry in trace:
            if entry.subject == option:
                gains[entry.where] += [r.value for r in entry.readings if r.name == "gain"]
        # Each context's mean is a look at mu_o with variance within^2 + noise^2 / n.
        weights = {k: 1 / (self.within**2 + self.noise**2 / len(g)) for k, g in gains.items() if g}
        precision = 1 / self.between**2 + sum(weights.values())
        pull = sum(weights[k] * sum(gains[k]) / len(gains[k]) for k in weights)
        mean, variance = (self.prior / self.between**2 + pull) / precision, 1 / precision
        here = gains.get(context, [])
        if here:
            # What the other contexts say of mu_o is the prior of theta_ok; then its own trials.
            outer = precision - weights[context]
            before = (self.prior / self.between**2 + pull - weights[context] * sum(here) / len(here)) / outer
            spread = 1 / outer + self.within**2
            shrink = spread / (spread + self.noise**2 / len(here))
            mean, variance = before + shrink * (sum(here) / len(here) - before), spread * (1 - shrink)
        else:
            variance += self.within**2
        return mean + self.explore * variance**0.5
