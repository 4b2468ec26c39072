"use strict";
// One page, no library: what it shows is what the API answers.

const SAY = {
  en: {
    photo: "A photo", drop: "Drop a photo here, or choose one. It stays on this server.",
    tokens: "Tokens", original: "Original", rebuilt: "Rebuilt", difference: "Difference",
    amplified: "(4 times as strong)", bytes: "Bytes of tokens", eye: "Distance to the eye",
    draw: "New pictures", label: "Class", more: "Draw four",
    drift: "Have the photos changed?", rollout: "Roll-out",
    shadow: "Shadow", "shadow-is": "Today's path answers; tokens run beside it.",
    canary: "Canary", "canary-is": "Tokens answer for a share of the parts.",
    full: "Full", "full-is": "Tokens answer for all.",
    key: "API key", use: "Use",
    unwatched: "No reference was given: photos are recorded, and not compared.",
    none: "No window of photos is complete yet.", quiet: "No change in the latest window.",
    changed: "Changed: ", comparisons: "comparisons", of: "of", held: "held",
    holds: "holds", broken: "broken", open: "not proven yet", least: "at least", most: "at most",
    model: (m) => `${m.tokens} tokens × ${m.channels}, ${m.width} × ${m.height} px, ${m.runs}`,
    judge: (j) => `· judged ${j.verdict} (${(100 * j.score).toFixed(0)}%)`,
    chart: (n, one) => `The largest drift figure of the last ${n} windows; the dashed line is the threshold, one false alarm in ${one} windows.`,
    failed: "The server does not answer.", other: "日本語",
    share: "share of the photos",
    metric: { agreement: "Verdicts that agree", defect_kept: "Defects kept", false_alarms: "False alarms", psnr: "PSNR (dB)", eye_distance: "Distance to the eye" },
  },
  ja: {
    photo: "写真", drop: "写真をここにドロップするか、選んでください。このサーバーの外には出ません。",
    tokens: "トークン数", original: "元の写真", rebuilt: "復元", difference: "差分",
    amplified: "(4倍に強調)", bytes: "トークンのバイト数", eye: "見た目の距離",
    draw: "新しい画像", label: "クラス", more: "4枚生成",
    drift: "写真は変わりましたか", rollout: "導入段階",
    shadow: "シャドー", "shadow-is": "従来の経路が回答し、トークンは並行して動きます。",
    canary: "カナリア", "canary-is": "一部の部品にトークンが回答します。",
    full: "全面", "full-is": "すべてにトークンが回答します。",
    key: "APIキー", use: "使う",
    unwatched: "基準が指定されていません。写真は記録されますが、比較はされません。",
    none: "まだ写真の窓が揃っていません。", quiet: "最新の窓に変化はありません。",
    changed: "変化あり: ", comparisons: "件の比較", of: "/", held: "保留中",
    holds: "満たす", broken: "違反", open: "まだ証明されていない", least: "以上", most: "以下",
    model: (m) => `${m.tokens}トークン × ${m.channels}、${m.width} × ${m.height} px、${m.runs}`,
    judge: (j) => `・判定 ${j.verdict} (${(100 * j.score).toFixed(0)}%)`,
    chart: (n, one) => `直近${n}窓のずれの最大値。破線は警報の境界で、誤警報は${one}窓に1回です。`,
    failed: "サーバーが応答しません。", other: "English",
    share: "写真の割合",
    metric: { agreement: "判定の一致", defect_kept: "欠陥の保持", false_alarms: "誤検出", psnr: "PSNR (dB)", eye_distance: "見た目の距離" },
  },
};
const $ = (id) => document.getElementById(id);
let language = navigator.language.startsWith("ja") ? "ja" : "en";
let key = sessionStorage.getItem("key") || "";
let status = null, photo = null, shown = null, seed = 0, asked = 0, timer = 0;

const say = (word) => SAY[language][word];

async function ask(path, options = {}) {
  const headers = { Accept: "application/json", ...(options.headers || {}) };
  if (key) headers.Authorization = `Bearer ${key}`;
  const answer = await fetch(path, { ...options, headers });
  const values = await answer.json();
  if (answer.status === 401) $("key-section").hidden = false;
  if (!answer.ok) throw new Error(values.error || answer.statusText);
  return values;
}

function told(error) {
  $("message").textContent = error instanceof TypeError ? say("failed") : error.message;
}

// ---- a photo ----

function paint(canvas, picture) {
  canvas.width = picture.width;
  canvas.height = picture.height;
  canvas.getContext("2d", { willReadFrequently: true }).drawImage(picture, 0, 0);
  return canvas.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, picture.width, picture.height);
}

async function decoded(base64) {
  const picture = new Image();
  picture.src = `data:image/png;base64,${base64}`;
  await picture.decode();
  return picture;
}

async function rebuild() {
  if (!photo) return;
  const mine = ++asked;
  try {
    const found = await ask(`/v1/reconstruct?tokens=${$("tokens").value}`, {
      method: "POST", body: photo, headers: { "Content-Type": "application/octet-stream" },
    });
    const [original, rebuilt] = await Promise.all([decoded(found.original), decoded(found.image)]);
    if (mine !== asked) return; // a later one is on its way
    $("message").textContent = "";
    $("pictures").hidden = $("figures").hidden = false;
    const a = paint($("original"), original), b = paint($("rebuilt"), rebuilt);
    for (let i = 0; i < a.data.length; i++) {
      if (i % 4 !== 3) a.data[i] = Math.min(255, Math.max(0, 128 + 4 * (b.data[i] - a.data[i])));
    }
    const difference = $("difference");
    difference.width = a.width;
    difference.height = a.height;
    difference.getContext("2d", { willReadFrequently: true }).putImageData(a, 0, 0);
    shown = found;
    tell();
  } catch (error) {
    if (mine === asked) told(error);
  }
}

function tell() {
  $("count").textContent = `${$("tokens").value} ${say("of")} ${$("tokens").max}`;
  if (!shown) return;
  $("bytes").textContent = shown.bytes.toLocaleString(language);
  $("psnr").textContent = `${shown.psnr.toFixed(1)} dB`;
  $("eye").textContent = shown.eye_distance.toFixed(3);
  $("original-says").textContent = say("judge")(shown.judge.original);
  $("rebuilt-says").textContent = say("judge")(shown.judge.rebuilt);
}

function take(file) {
  if (!file) return;
  photo = file;
  rebuild();
}

// ---- new pictures ----

async function draw() {
  $("draw-more").disabled = true;
  try {
    for (let i = 0; i < 4; i++) {
      const found = await ask("/v1/generate", {
        method: "POST", headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ label: Number($("label").value), seed: seed++ }),
      });
      const picture = await decoded(found.image);
      picture.alt = $("label").selectedOptions[0] ? $("label").selectedOptions[0].textContent : "";
      $("drawn").prepend(picture);
    }
    while ($("drawn").children.length > 24) $("drawn").lastChild.remove();
  } catch (error) {
    told(error);
  }
  $("draw-more").disabled = false;
}

// ---- what the server sees ----

function svg(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function chart(windows) {
  const figure = $("chart");
  figure.replaceChildren();
  figure.hidden = !windows.length;
  if (!windows.length) return;
  const step = 600 / windows.length, top = 2.5;
  const y = (value) => 160 - (160 * Math.min(value, top)) / top;
  const most = windows.map((w) => Math.max(...Object.values(w.figures)));
  windows.forEach((w, i) => {
    if (w.alarm) figure.append(svg("rect", { class: "alarm", x: i * step, y: 0, width: step, height: 160 }));
  });
  figure.append(svg("line", { class: "limit", x1: 0, x2: 600, y1: y(1), y2: y(1) }));
  const points = most.map((value, i) => `${(i + 0.5) * step},${y(value)}`).join(" ");
  figure.append(svg("polyline", { class: "line", points }));
  figure.setAttribute("aria-label", say("chart")(windows.length, status.drift.one_in));
}

function show() {
  document.documentElement.lang = language;
  document.querySelectorAll("[data-say]").forEach((e) => { e.textContent = say(e.dataset.say); });
  const other = language === "ja" ? "en" : "ja";
  $("language").textContent = say("other");
  $("language").lang = other;
  $("language").setAttribute("aria-label", other === "ja" ? "日本語に切り替える" : "Switch to English");
  tell();
  if (!status) return;
  const { model, rollout, drift } = status;
  $("model").textContent = say("model")(model);
  const windows = drift.windows, last = windows[windows.length - 1];
  $("drift-says").textContent = !windows.length
    ? say(drift.watched ? "none" : "unwatched")
    : last.alarm ? say("changed") + last.said[language].join(language === "ja" ? "、" : "; ") : say("quiet");
  chart(windows);
  for (const stage of ["shadow", "canary", "full"]) {
    const now = stage === rollout.stage;
    $(`stage-${stage}`).classList.toggle("now", now);
    if (now) $(`stage-${stage}`).setAttribute("aria-current", "step");
    else $(`stage-${stage}`).removeAttribute("aria-current");
  }
  const held = rollout.held ? ` (${say("held")})` : "";
  $("comparisons").textContent = `${rollout.comparisons} ${say("of")} ${rollout.least} ${say("comparisons")}${held}`;
  $("evidence").replaceChildren(...rollout.evidence.map((e) => {
    const item = document.createElement("li");
    const state = e.holds ? "holds" : e.broken ? "broken" : "open";
    const bound = (number, sense) => language === "ja"
      ? `${number}${say(sense === "min" ? "least" : "most")}`
      : `${say(sense === "min" ? "least" : "most")} ${number}`;
    const limit = e.share === null ? bound(e.limit, e.sense) : bound(e.share, "min");
    const each = e.share === null ? "" : ` ${bound(e.limit, e.sense)} (${say("share")})`;
    const value = e.value === null ? "–" : e.value.toPrecision(3);
    const ends = e.low === null ? "" : ` [${e.low.toPrecision(3)}, ${e.high.toPrecision(3)}]`;
    item.className = state;
    item.textContent = `${say("metric")[e.metric]}${each}: ${value}${ends}, ${limit}: ${say(state)}`;
    return item;
  }));
}

async function refresh() {
  try {
    const first = !status;
    status = await ask("/v1/status");
    $("key-section").hidden = true;
    if (first) {
      const { model, rollout } = status;
      $("tokens").max = model.tokens;
      $("tokens").min = model.nested ? 1 : model.tokens;
      $("tokens").value = rollout.tokens;
      $("tokens").disabled = !model.nested;
      $("draw").hidden = model.classes === null;
      $("label").replaceChildren(...(model.classes || []).map((name, i) => new Option(name, i)));
    }
    show();
  } catch (error) {
    told(error);
  }
}

$("file").addEventListener("change", (event) => take(event.target.files[0]));
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop") take(event.dataTransfer.files[0]);
  });
}
$("tokens").addEventListener("input", () => {
  tell();
  clearTimeout(timer);
  timer = setTimeout(rebuild, 80);
});
$("draw-more").addEventListener("click", draw);
$("language").addEventListener("click", () => { language = language === "ja" ? "en" : "ja"; show(); });
$("key-form").addEventListener("submit", (event) => { event.preventDefault(); key = $("key").value; sessionStorage.setItem("key", key); $("message").textContent = ""; refresh(); });
show();
refresh();
setInterval(() => { if (!document.hidden) refresh(); }, 5000);
