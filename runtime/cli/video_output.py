"""vicort-run's --render: what is written after the run."""

from __future__ import annotations

from vicort.runtime.cli.output import Output
from vicort.runtime.cli.run_options import Options
from vicort.runtime.cli.video_check import OPTION
from vicort.runtime.rendering.lettering import typeface
from vicort.runtime.rendering.notes import Notes
from vicort.runtime.rendering.render import render
from vicort.runtime.sources.opening import open_sound, open_source

SHOWN_LETTERS = 5  # of those that a font lacks


def write_video(options: Options, notes: Notes, output: Output) -> None:
    """Write the file of --render. Raises VicortError."""
    path, (spec,) = options.render, options.sources
    if path is None:
        return
    # its warnings were written when the run opened it
    with open_source(spec, **options.reading, live=False, image_fps=options.image_fps) as source:
        letters = {each for note in notes.in_order for each in note.question + note.answer}
        face, lacking = typeface(options.render_font, letters)
        if lacking:
            some = ", ".join(
                f"{each} (U+{ord(each):04X})" for each in sorted(lacking)[:SHOWN_LETTERS]
            )
            output.warn(
                f"the font of {OPTION} lacks {len(lacking)} letters, which are drawn as boxes, "
                f"such as {some}: name a font that has them with --render-font"
            )
        sound = open_sound(spec, warn=output.warn, **options.reading)
        with output.progress_of(source, title=f"writing {path.name}"):
            written = render(
                source,
                sound,
                notes,
                face,
                path,
                threads=options.threads or 0,
                warn=output.warn,
                progress=output.progress,
            )
    output.tell(f"wrote {path} ({written.frames} frames, {float(written.seconds):.1f} s)")
