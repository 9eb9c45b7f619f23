"""Pieces of HTML that gradio has no component for. Every text that is not ours is escaped."""

from collections.abc import Sequence
from html import escape

from semipermeable.studio.album import Neighbour
from semipermeable.studio.comparing import Bar
from semipermeable.studio.erasing import Run
from semipermeable.studio.evaluating import Figure
from semipermeable.studio.jobs import Job, JobState

__all__ = ["STYLE", "bars", "figures", "neighbours", "run_line", "status"]

STYLE = """
.gradio-container { width: 100% !important; max-width: 1100px !important; margin: 0 auto !important; }
.spm h1 { font-size: 1.35rem; margin: 0; }
.spm p { margin: .2rem 0; }
.spm .quiet { color: var(--body-text-color); opacity: .75; }
.spm .bad { color: var(--error-text-color, #b3261e); }
.gradio-container { --block-info-text-color: color-mix(in srgb, var(--body-text-color) 70%, transparent); }
.spm progress { appearance: none; width: 100%; height: .6rem; border: 0; border-radius: 6px; overflow: hidden;
  background: var(--border-color-primary); }
.spm progress::-webkit-progress-bar { background: var(--border-color-primary); }
.spm progress::-webkit-progress-value { background: var(--color-accent); }
.spm progress::-moz-progress-bar { background: var(--color-accent); }
.spm mark { background: #ffe27a; color: #1c1c1e; border-radius: 3px; padding: 0 .2rem; }
.spm .bar { margin: .55rem 0; }
.spm .bar > div:first-child { display: flex; justify-content: space-between; gap: 1rem; }
.spm .track { background: var(--border-color-primary); border-radius: 6px; height: 12px; overflow: hidden; }
.spm .fill { background: var(--color-accent); height: 100%; }
.spm .wide { overflow-x: auto; }
.spm table { border-collapse: collapse; border: 0 !important; width: 100%; font-size: .92rem; }
.spm th, .spm td { text-align: left; padding: .3rem 1.2rem .3rem 0 !important; border: 0 !important; }
.spm th { font-size: .92rem; vertical-align: bottom; }
.spm tr { border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.spm td.number, .spm th.number { text-align: right; }
.gradio-container .grid-wrap { max-height: none !important; }
.gradio-container #changed .thumbnail-item { aspect-ratio: auto !important; }
.shelf-row { align-items: center; }
#stop { max-width: 10rem; }
button:focus-visible, input:focus-visible, textarea:focus-visible, [role=tab]:focus-visible, summary:focus-visible {
  outline: 3px solid var(--color-accent) !important; outline-offset: 2px; }
/* Gradio puts its own classes before every selector of a media query; one that names them matches nothing there. */
@media (max-width: 480px) {
  #previews .grid-container { grid-template-columns: repeat(2, 1fr) !important; }
  #changed .grid-container { grid-template-columns: 1fr !important; }
  button[role=tab] { padding: 0 .4rem !important; font-size: .8rem !important; }
}
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
"""


def _box(inner: str, extra: str = "") -> str:
    return f'<div class="spm" {extra}>{inner}</div>'


def status(under_way: Sequence[Job], last: Job | None) -> str:
    """Say what is being done, what waits, and what the last job came to."""
    at_work = [job for job in under_way if job.state is JobState.RUNNING]
    waiting = [job for job in under_way if job.state is JobState.WAITING]
    lines: list[str] = []
    for job in at_work[-1:]:
        share = f'value="{job.done}" max="{job.total}"' if job.total else ""
        count = f"{job.done} of {job.total}" if job.total else job.note
        stopping = ", stopping" if job.stopping else ""
        title = escape(job.title)
        lines.append(f"<p><strong>{title}</strong> · {escape(count)}{stopping}</p>")
        lines.append(f'<progress {share} aria-label="progress of {title}"></progress>')
    if waiting:
        names = escape(", ".join(job.title for job in waiting))
        lines.append(f'<p class="quiet">waiting: {names}</p>')
    if last is not None:
        bad = ' class="bad" role="alert"' if last.state is JobState.FAILED else ' class="quiet"'
        lines.append(f"<p{bad}>{escape(last.message)}</p>")
    return _box("".join(lines) or '<p class="quiet">Ready.</p>', 'role="status" aria-live="polite"')


def run_line(run: Run | None) -> str:
    """Say where a training run is."""
    if run is None:
        return _box('<p class="quiet">Nothing has been erased yet. Type a concept and press Erase.</p>')
    name, where = escape(run.concept.name), f"step {run.step} of {run.num_steps}"
    told = {
        "ready": "waits for its turn",
        "running": where if run.step else "preparing pictures to learn from",
        "stopped": f"stopped at {where}; press Resume to go on",
        "failed": f"failed at {where}: {escape(run.message)}",
        "finished": "finished; the membrane is on the shelf",
    }[run.state]
    still_open = "chosen when it begins" if run.state == "ready" else "what is left of the prompt"
    instead = escape(run.concept.surrogate) or still_open
    aliases = f", also called {escape(', '.join(run.concept.aliases))}" if run.concept.aliases else ""
    return _box(f"<p><strong>{name}</strong>{aliases} → {instead} · {told}.</p>")


def bars(shown: Sequence[Bar], identical: bool, drift: float) -> str:
    """Draw a bar per concept with its γ, and the words that opened it."""
    if not shown:
        return _box('<p class="quiet">No membrane was switched on: both pictures are the model\'s own.</p>')
    lines: list[str] = []
    for bar in shown:
        words = " ".join(f"<mark>{escape(word)}</mark>" for word in bar.words)
        why = f"opened by {words}" if bar.words and bar.gamma > 0 else escape(bar.reason)
        strength = "" if bar.strength == 1 else f" × {bar.strength:g}"
        name, gamma, width = escape(bar.concept), f"{bar.gamma:.2f}", min(1.0, max(0.0, bar.gamma))
        meter = f'role="meter" aria-label="γ of {name}" aria-valuemin="0" aria-valuemax="1" aria-valuenow="{gamma}"'
        lines.append(
            f'<div class="bar"><div><strong>{name}</strong><span>γ = {gamma}{strength}</span></div>'
            f'<div class="track" {meter}><div class="fill" style="width:{width:.0%}"></div></div>'
            f'<p class="quiet">{why}</p></div>'
        )
    moved = (
        "The two pictures are equal, bit for bit." if identical else f"The pictures differ by {drift:.1%} on average."
    )
    return _box("".join(lines) + f'<p class="quiet">{moved}</p>')


def neighbours(concept: str, rows: Sequence[Neighbour]) -> str:
    """A table of what changed elsewhere."""
    if not rows:
        return _box('<p class="quiet">Choose a membrane and press Redraw to see what it does to its neighbours.</p>')
    judged = any(any(row.seen) for row in rows)
    head = "<th>prompt</th><th class='number'>γ</th><th class='number'>drift</th>" + (
        "<th>a judge sees, before → after</th>" if judged else ""
    )
    lines: list[str] = []
    for row in rows:
        drift = "none" if row.identical else f"{row.drift:.1%}"
        cells = f"<td>{escape(row.prompt)}</td><td class='number'>{row.gamma:.2f}</td><td class='number'>{drift}</td>"
        if judged:
            before, after = row.seen
            cells += f"<td>{escape(before)}{'' if before == after else ' → ' + escape(after)}</td>"
        lines.append(f"<tr>{cells}</tr>")
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    return _box(
        f"<p>Neighbours of <strong>{escape(concept)}</strong>; drift is the mean difference of pixels.</p>{table}"
    )


def figures(found: Sequence[Figure]) -> str:
    """A table of a benchmark's figures."""
    if not found:
        return _box('<p class="quiet">No result yet. Choose a test and press Evaluate.</p>')
    lines = "".join(
        f"<tr><td>{escape(one.title)}</td><td class='number'>{_number(one.base)}</td>"
        f"<td class='number'>{_number(one.value)}</td>"
        f"<td class='number'>{_number(one.low)} to {_number(one.high)}</td></tr>"
        for one in found
    )
    head = "<th>figure</th><th class='number'>model alone</th><th class='number'>with membrane</th>"
    head += "<th class='number'>95 % interval</th>"
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
    link = '<p><a href="/report" target="_blank" rel="noopener">Open the report</a> in a window of its own.</p>'
    return _box(table + link)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
