// Clips: each moves until it is stopped, and stands still from the start where less motion is asked for.

const STILL = window.matchMedia("(prefers-reduced-motion: reduce)").matches;

function clipFigure({ title, type, number }) {
  const source = `data:${type};base64,${document.getElementsByClassName("clip")[number].textContent}`;
  const name = `Clip: ${title}`;
  const caption = el("figcaption", {}, el("h3", {}, title));
  if (type.startsWith("video")) {
    return el("figure", {}, caption,
      el("video", { src: source, controls: true, muted: true, loop: true, playsinline: true, "aria-label": name }));
  }
  const image = el("img", { src: source, alt: name });
  const still = el("canvas", { role: "img", "aria-label": name, hidden: true });
  const button = el("button", { type: "button", onclick: () => stop(still.hidden) });
  function stop(stopped) {
    if (stopped) {
      [still.width, still.height] = [image.naturalWidth, image.naturalHeight];
      still.getContext("2d").drawImage(image, 0, 0);
    }
    still.hidden = !stopped;
    image.hidden = stopped;
    button.textContent = stopped ? "Play" : "Stop";
    button.setAttribute("aria-label", `${button.textContent}: ${title}`);
  }
  stop(false);
  if (STILL) image.decode().then(() => stop(true));
  return el("figure", {}, caption, image, still, button);
}

if (DATA.clips.length) {
  showPart("clips");
  fill("clip-list", DATA.clips.map((clip, number) => ({ ...clip, number })), ({ game }) => game, clipFigure);
  $("clips-left-out").textContent = DATA.clips_left_out.length ? `Not on this page, as it would be too large: ${DATA.clips_left_out.join(", ")}.` : "";
}
