// Without this the theme's Font Awesome swaps the <i> icons that widgets keep a hold on.
window.FontAwesomeConfig = { autoReplaceSvg: "nest" };

// On document, not window: Sphinx's search listens there too and must come second.
document.addEventListener("DOMContentLoaded", () => {
  // ipywidgets typesets through the MathJax 2 interface; the book carries MathJax 3.
  if (window.MathJax) {
    MathJax.Hub = { Queue: ([, , element]) => MathJax.typesetPromise([element]) };
  }

  // A browser does not fetch beside a file, so search there goes without excerpts.
  if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

  // ipywidgets names no slider for a screen reader, and tells it an index for a value.
  if (!document.querySelector("script[type='application/vnd.jupyter.widget-view+json']")) return;
  new MutationObserver(() => {
    for (const slider of document.querySelectorAll(".widget-slider")) {
      const text = (part) => slider.querySelector(part)?.textContent ?? "";
      for (const part of slider.querySelectorAll(".noUi-handle, .widget-readout")) {
        part.setAttribute("aria-label", text(".widget-label"));
      }
      slider.querySelector(".noUi-handle")?.setAttribute("aria-valuetext", text(".widget-readout"));
    }
  }).observe(document.body, { childList: true, characterData: true, subtree: true });
});
