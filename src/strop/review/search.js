// Shows the samples that a word or a number is typed for. Without it the page shows all of them.
(function () {
  "use strict";
  var box = document.getElementById("find"), said = document.getElementById("said");
  var samples = Array.prototype.slice.call(document.querySelectorAll("article.sample"));
  // The signs that stand for line ends, tabs and spaces are the page's own and not the data's.
  function plain(text) { return text.replace(/[↵⇥␍]/g, "").replace(/\s+/g, " ").toLowerCase(); }
  var texts = samples.map(function (one) { return plain(one.querySelector(".tokens").textContent); });
  function look() {
    var wanted = plain(box.value).trim(), number = wanted.replace(/^#/, ""), count = 0;
    samples.forEach(function (one, index) {
      var hit = !wanted || one.dataset.number === number || (wanted[0] !== "#" && texts[index].indexOf(wanted) >= 0);
      one.hidden = !hit;
      count += hit;
    });
    said.textContent = wanted ? count + " of " + samples.length + " shown here" : "";
  }
  document.getElementById("finder").hidden = false;
  box.addEventListener("input", look);
})();
