// Mathematics that pymdownx.arithmatex marks; once each, also after navigation without
// a reload (document$ is the theme's stream of documents).
(() => {
  let last = Promise.resolve();

  function typeset() {
    if (!window.MathJax.typesetPromise) return last; // not there yet: pageReady calls
    last = last.then(() => {
      const fresh = [...document.querySelectorAll(".arithmatex")].filter(
        (element) => !element.querySelector("mjx-container"),
      );
      return fresh.length ? window.MathJax.typesetPromise(fresh) : undefined;
    });
    return last;
  }

  window.MathJax = {
    tex: {
      inlineMath: [["\\(", "\\)"]],
      displayMath: [["\\[", "\\]"]],
      processEscapes: true,
      processEnvironments: true,
    },
    options: { ignoreHtmlClass: ".*|", processHtmlClass: "arithmatex" },
    startup: { pageReady: typeset },
  };

  document$.subscribe(typeset);
})();
