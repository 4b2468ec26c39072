# ruff: noqa: RUF001, full-width brackets and marks are what Japanese is written with
"""Every sentence of the study's report, English and Japanese side by side.

A text is filled by ``str.format``; both languages have the same placeholders. Whole numbers come
as :class:`Count`, which groups thousands and knows its English noun: ``{photos:photo|photos}``.
"""

from collections.abc import Iterable
from typing import Any

from softvq.errors import UserError

LANGUAGES = ("en", "ja")


class Count(int):
    """A whole number: ``1,234``, or with the format ``photo|photos`` ``1,234 photos``."""

    def __format__(self, spec: str) -> str:
        one, bar, many = spec.partition("|")
        number = f"{int(self):,}"
        return f"{number} {one if self == 1 else many}" if bar else number


class Words:
    """The texts of one language. Raises UserError for a language that is not there."""

    def __init__(self, lang: str):
        if lang not in LANGUAGES:
            raise UserError(f"unknown language '{lang}'; known: {', '.join(LANGUAGES)}")
        self.lang = lang
        self.column = LANGUAGES.index(lang)

    def __call__(self, key: str, **values: Any) -> str:
        """The text of ``key``, filled with ``values``."""
        counted = {
            name: Count(value) if type(value) is int else value for name, value in values.items()
        }
        return TEXTS[key][self.column].format(**counted)

    def name(self, family: str, name: str, **values: Any) -> str:
        """The text of ``family.name``; a name that no one translated stands for itself."""
        return self(f"{family}.{name}", **values) if f"{family}.{name}" in TEXTS else name

    def join(self, items: Iterable[str]) -> str:
        """An enumeration."""
        return self("comma").join(items)

    def prose(self, sentences: Iterable[str]) -> str:
        """One paragraph."""
        return self("between_sentences").join(sentences)


# key: (English, Japanese)
TEXTS: dict[str, tuple[str, str]] = {
    # ---- small things ----
    "comma": (", ", "、"),
    "between_sentences": (" ", ""),
    "range": ("{low} to {high}", "{low}～{high}"),
    "interval": ("{value} ({low} to {high})", "{value}（{low}～{high}）"),
    "bracket": ("{value} ({more})", "{value}（{more}）"),
    "by": ("{a} x {b}", "{a}×{b}"),
    "colon": ("{what}: {value}", "{what}：{value}"),
    "unit.share": ("{value}%", "{value}%"),
    "unit.points": ("{value} points", "{value}ポイント"),
    "unit.db": ("{value} dB", "{value} dB"),
    "unit.px": ("{value} px", "{value}画素"),
    "unit.plain": ("{value}", "{value}"),
    "header.share": ("{name}, %", "{name}（%）"),
    "header.points": ("{name}, percentage points", "{name}（ポイント）"),
    "header.db": ("{name}, dB", "{name}（dB）"),
    "header.px": ("{name}, px", "{name}（画素）"),
    "header.plain": ("{name}", "{name}"),
    "at_least": ("≥ {value}", "{value}以上"),
    "at_most": ("≤ {value}", "{value}以下"),
    "pass": ("✓", "○"),
    "fail": ("✗", "×"),
    "nothing": ("–", "－"),
    "minutes": ("{value} min", "{value}分"),
    "seconds": ("{value} s", "{value}秒"),
    # ---- the names of things ----
    "kind.softvq": ("SoftVQ", "SoftVQ"),
    "kind.kl": ("KL (variational)", "KL（変分）"),
    "kind.vq": ("VQ (codebook)", "VQ（コードブック）"),
    "kind.ae": ("plain autoencoder", "通常のオートエンコーダー"),
    "kind.jpeg": ("JPEG", "JPEG"),
    "kind.webp": ("WebP", "WebP"),
    "kind.thumbnail": ("thumbnail", "縮小画像"),
    "kind.pca": ("PCA", "主成分分析（PCA）"),
    "metric.psnr": ("PSNR", "PSNR"),
    "metric.ssim": ("SSIM", "SSIM"),
    "metric.accuracy": ("Accuracy", "正解率"),
    "metric.accuracy_drop": ("Accuracy lost", "正解率の低下"),
    "metric.defect_recall": ("Defects found", "欠陥検出率"),
    "metric.defect_kept": ("Defects kept", "欠陥保持率"),
    "metric.false_alarms": ("False alarms", "過検出率"),
    "metric.contrast_kept": ("Contrast kept", "コントラスト保持率"),
    "metric.regions_surviving": ("Regions surviving", "欠陥領域の残存率"),
    "metric.psnr_inside": ("PSNR inside defects", "欠陥領域内のPSNR"),
    "metric.smallest_surviving": ("Smallest surviving defect", "残存する最小の欠陥"),
    "metric.kernel_distance": ("Kernel distance", "カーネル距離"),
    "held.channels": ("numbers per token", "トークン当たりの数値数"),
    "held.floats": ("numbers in all", "数値の総数"),
    "corruption.noise": ("noise", "ノイズ"),
    "corruption.blur": ("blur", "ぼけ"),
    "corruption.jpeg": ("JPEG compression", "JPEG圧縮"),
    "corruption.dark": ("darker", "暗い画像"),
    "corruption.bright": ("brighter", "明るい画像"),
    "split.train": ("training", "学習用"),
    "split.val": ("held out", "検証用"),
    "why.same pixels": ("same pixels", "画素が完全に一致"),
    "why.near-duplicate": ("nearly the same picture", "ほぼ同一の画像"),
    "why.same group": ("same group", "同一グループ"),
    "why.not measured": ("not measured", "測定不可"),
    "reason.not a file": ("not a file", "ファイルではありません"),
    "reason.no such file": ("no such file", "ファイルが存在しません"),
    "reason.empty file": ("empty file", "空のファイル"),
    "reason.truncated": ("truncated", "ファイルが途中で切れています"),
    "reason.damaged": ("damaged", "ファイルが破損しています"),
    "reason.too small": ("too small", "画像が小さすぎます"),
    "reason.decompression bomb": ("decompression bomb", "画素数が上限を超えています"),
    "reason.not an image, or its header is damaged": (
        "not an image, or its header is damaged",
        "画像ではないか、ヘッダーが破損しています",
    ),
    "time.data": ("looking at the data, and the classifier", "データの確認と分類器の学習"),
    "time.speed": ("measuring the speed of training", "学習速度の測定"),
    "time.training": ("training the tokenizers", "トークナイザーの学習"),
    "time.measuring": ("measuring", "評価"),
    "machine.system": ("system", "OS"),
    "machine.threads": ("threads", "スレッド数"),
    "machine.python": ("Python", "Python"),
    "machine.torch": ("PyTorch", "PyTorch"),
    # ---- the top: answer and facts ----
    "title": ("How few tokens do these photos need?", "画像に必要なトークン数の検証報告書"),
    "summary.arm": (
        "Recommended: {arm}, that is {tokens:token|tokens} and {bytes:byte|bytes} per photo. It is "
        "the cheapest configuration tried whose every acceptance criterion holds with its "
        "{confidence} confidence interval.",
        "推奨構成は「{arm}」（画像1枚当たり{tokens}トークン、{bytes}バイト）です。"
        "すべての合格基準を{confidence}信頼区間も含めて満たした構成のうち、"
        "最も低コストの構成です。",
    ),
    "summary.none": (
        "No configuration can be recommended: none of the {arms} judged to the end meets every "
        "acceptance criterion with its {confidence} confidence interval.",
        "推奨できる構成はありません。最後まで評価した{arms}構成の中に、"
        "すべての合格基準を{confidence}信頼区間も含めて満たすものはありませんでした。",
    ),
    "summary.thin": (
        "This does not mean that the photos need more tokens: the evidence is too thin to tell.",
        "ただし、トークン数が不足しているとは限りません。"
        "検証用のデータが少なく、合否を判定できないためです。",
    ),
    "fact.tokens": ("{tokens:token|tokens}", "{tokens}トークン"),
    "fact.tokens.label": ("per photo, recommended: {arm}", "画像1枚当たり（推奨構成：{arm}）"),
    "fact.none": ("None", "該当なし"),
    "fact.none.label": (
        "recommended; the figures here are of the best tried, {arm}",
        "推奨構成（以下の数値は最良の構成 {arm} のもの）",
    ),
    "fact.floats.label": (
        "numbers per photo, pixels to tokens",
        "画像1枚当たりの数値の個数（画素→トークン）",
    ),
    "fact.kept.label": (
        "of the defects found in originals are still found ({low} to {high})",
        "欠陥保持率：元画像で検出できた欠陥のうち、復元後も検出できた割合（{low}～{high}）",
    ),
    "fact.contrast.label": (
        "of the contrast inside defects is kept ({low} to {high})",
        "欠陥領域内のコントラスト保持率（{low}～{high}）",
    ),
    "fact.psnr.label": (
        "PSNR of the rebuilt photos ({low} to {high})",
        "復元画像のPSNR（{low}～{high}）",
    ),
    "fact.smallest.label": (
        "smallest defect that survives, across, in the study's pixels",
        "残存する最小の欠陥の直径（検証サイズでの画素数）",
    ),
    "fact.needed": ("about {needed}", "約{needed}件"),
    "fact.needed.label": (
        "independent groups of photos would be needed to decide on “{metric}”; there are {groups}",
        "「{metric}」の判定に必要な独立したグループの数（今回は{groups}件）",
    ),
    # ---- one page for the manager ----
    "brief.heading": ("The study on one page", "検証結果の要約"),
    "brief.about": ("What it is about", "検証の目的"),
    "brief.about.text": (
        "A token is a short list of numbers. A tokenizer describes a photo by a few tokens and "
        "rebuilds the photo from them. Systems that generate, search or check pictures then work "
        "on tokens instead of pixels: the fewer there are, the less that costs, and the more of "
        "a photo may get lost. This study measures on your own photos how far one can go.",
        "トークンとは、少数の数値を並べた短いデータです。トークナイザーは画像を少数のトークンで"
        "表し、そのトークンから画像を復元します。画像の生成・検索・検査を行うシステムは、"
        "画素の代わりにトークンを処理します。トークンが少ないほど処理コストは下がりますが、"
        "画像の情報は失われやすくなります。本検証では、お手元の画像を用いて、"
        "トークンをどこまで減らせるかを測定しました。",
    ),
    "brief.tried": ("What was tried", "検証した内容"),
    "brief.tried.text": (
        "{arms:tokenizer was|tokenizers were} trained ({kinds}; {tokens} tokens) on "
        "{train:photo|photos} and judged on {val:other photo|other photos} that no training saw.",
        "{arms}種類のトークナイザー（方式：{kinds}、トークン数：{tokens}）を{train}枚の画像で"
        "学習し、学習に使用していない{val}枚の検証用画像で評価しました。",
    ),
    "brief.tried.stopped": (
        "{stopped:of these was|of these were} stopped early, because another with no more tokens "
        "and no more numbers was better.",
        "このうち{stopped}構成は、トークン数も数値の個数も同等以下でより優れた構成が"
        "あったため、学習を途中で打ち切りました。",
    ),
    "brief.tried.baselines": (
        "For comparison the same photos were kept in the same number of bytes or numbers by "
        "{kinds}.",
        "比較のため、同じ画像を同じバイト数または同じ個数の数値に収めた従来方式"
        "（{kinds}）も評価しました。",
    ),
    "brief.criteria": ("What is acceptable", "合格基準"),
    "brief.criteria.text": (
        "{criteria}. Each must hold at the unfavourable end of its {confidence} confidence "
        "interval, that is, allowing for chance in the choice of photos.",
        "{criteria}。検証用画像の選び方による偶然のばらつきを考慮し、{confidence}信頼区間の"
        "不利な側の端でも基準を満たすことを条件としました。",
    ),
    "brief.criteria.none": ("None was given.", "合格基準は指定されていません。"),
    "brief.recommended": ("Recommendation", "推奨"),
    "brief.recommended.arm": (
        "Use {arm}: {kind}, {tokens:token|tokens} of {channels:number|numbers} each.",
        "「{arm}」（方式：{kind}、{tokens}トークン、1トークン当たり{channels}個の数値）の使用を"
        "推奨します。",
    ),
    "brief.recommended.cheaper": (
        "Whatever is cheaper and was trained to the end ({count:configuration|configurations}) "
        "fails; the next cheaper, {arm}, in: {metrics}.",
        "より低コストで最後まで学習した{count}構成は、いずれも不合格でした。"
        "次に低コストの「{arm}」が満たさなかった基準は、{metrics}です。",
    ),
    "brief.recommended.cheapest": (
        "Nothing cheaper was judged to the end.",
        "これより低コストで、最後まで評価した構成はありません。",
    ),
    "brief.recommended.none": (
        "None. Of the {arms:tokenizer|tokenizers} trained, so many fail each criterion: {failing}.",
        "推奨できる構成はありません。学習した{arms}構成のうち、各基準を満たさなかった構成の"
        "数は、{failing}です。",
    ),
    "brief.recommended.best": (
        "{arm} comes nearest, and the figures below are about it; it is not recommended.",
        "以下では、合格基準に最も近い「{arm}」の数値を示しますが、推奨するものではありません。",
    ),
    "brief.evidence": (
        "The evidence is too thin to tell.",
        "検証用のデータが少なく、合否を判定できません。",
    ),
    "brief.evidence.one": (
        "“{metric}” is {value}, but {groups:independent group|independent groups} of photos prove "
        "no better than {bound}, where {least} is asked for; about {needed:group|groups} would "
        "prove it.",
        "「{metric}」の測定値は{value}ですが、独立したグループが{groups}件では{bound}までしか"
        "示せず、基準（{least}）の確認にはおよそ{needed}件が必要です。",
    ),
    "brief.evidence.mend": (
        "What is needed are photos of different parts, not more photos of the same.",
        "必要なのは、同じ現物の画像ではなく、異なる現物の画像です。",
    ),
    "count": ("{name}: {count}", "{name}：{count}"),
    "brief.saved": ("What is saved", "削減できるコスト"),
    "brief.saved.numbers": (
        "A photo of {pixels:pixel value|pixel values} is described by {floats:number|numbers}: "
        "{times} times fewer.",
        "画像1枚当たり{pixels}個の画素値を{floats}個の数値で表せます（{times}分の1）。",
    ),
    "brief.saved.tokens": (
        "Against the {longest:token|tokens} of the longest configuration tried, a generator on "
        "these tokens needs {share} of the computation.",
        "検証した中で最もトークン数の多い構成（{longest}トークン）と比べ、"
        "このトークンを用いる画像生成モデルの計算量は{share}になります。",
    ),
    "brief.lost": ("What is lost", "失われる情報"),
    "brief.lost.kept": (
        "A classifier, trained to tell defects on original photos, was shown the rebuilt ones. Of "
        "the defects that it finds in the originals it still finds {value} ({interval} with "
        "{confidence} confidence).",
        "元画像で欠陥の見分け方を学習させた分類器に、復元画像を判定させました。"
        "元画像で検出できた欠陥のうち、復元画像でも検出できた割合は{value}です"
        "（{confidence}信頼区間：{interval}）。",
    ),
    "brief.lost.accuracy": (
        "Its accuracy over all classes goes from {before} to {after}.",
        "全クラスの正解率は、元画像の{before}に対して復元画像では{after}です。",
    ),
    "brief.lost.contrast": (
        "Inside the marked defects {value} of the contrast remains on average.",
        "指定された欠陥領域内のコントラストは、平均で{value}が保たれています。",
    ),
    "brief.lost.smallest": (
        "Of the defects of {study} across or more (about {original} in the photo file), nine in "
        "ten keep at least half of their contrast.",
        "直径{study}以上（元の画像ファイルでは約{original}以上）の欠陥では、"
        "9割がコントラストの半分以上を保っています。",
    ),
    "brief.lost.smallest_none": (
        "There is no size from which on nine in ten of the defects keep half of their contrast.",
        "9割の欠陥がコントラストの半分以上を保つと言える大きさは、ありませんでした。",
    ),
    "brief.lost.baseline": (
        "In as many bytes or numbers the best of the comparison methods, {kind}, comes to "
        "“{metric}” of {value}; but it gives no tokens to work on.",
        "同じバイト数または同じ個数の数値に収めた従来方式のうち最良の{kind}では、「{metric}」は"
        "{value}です。ただし、従来方式のデータはトークンとして処理できません。",
    ),
    "brief.lost.psnr": (
        "Over the whole picture the rebuilt photos come to a PSNR of {value} (higher is closer to "
        "the original; 6 dB more means half the error).",
        "画像全体では、復元画像のPSNR（元画像との近さを表す指標で、高いほど近く、"
        "6 dB高いと誤差が半分になります）は平均{value}です。",
    ),
    "brief.risk": ("The risk", "リスク"),
    "brief.risk.missed": (
        "Of 100 defects found today, up to {missed} could be missed after the change without "
        "contradicting these measurements.",
        "現在検出できている欠陥100件のうち、最大{missed}件を見逃すようになる可能性が、"
        "今回の測定では否定できません。",
    ),
    "brief.risk.recall": (
        "The judgement is only as good as the classifier, which finds {recall} of the defects in "
        "the originals; a defect that it does not know is not counted.",
        "評価の確かさは分類器の性能に左右されます。この分類器が元画像で検出できる欠陥は"
        "{recall}であり、検出できない欠陥への影響は評価に含まれません。",
    ),
    "alarms": (
        "Of the photos without a defect it takes {alarms} for defective, in the originals already.",
        "また、欠陥のない画像についても、元画像の段階で{alarms}を欠陥ありと判定しています。",
    ),
    "brief.risk.nothing": (
        "There was no classifier to judge by, because the photos have no class labels: whether "
        "defects are still found is not known.",
        "画像に分類ラベルがないため、分類器による評価は行っていません。"
        "欠陥を引き続き検出できるかどうかは不明です。",
    ),
    "brief.risk.photos": (
        "All of it was measured on {val:photo|photos} of {groups:independent group|independent "
        "groups}; for photos unlike these (another camera, light or product) it says nothing. "
        "Each tokenizer was trained once.",
        "以上は、{groups}の独立したグループに属する{val}枚の検証用画像による結果です。"
        "カメラ・照明・製品が異なる画像には当てはまりません。"
        "また、各トークナイザーの学習は1回のみです。",
    ),
    "brief.risk.leaks": (
        "{leaks:held-out photo is|held-out photos are} (nearly) in the training photos too; see "
        "below.",
        "検証用画像のうち{leaks}枚は、学習用画像と重複またはほぼ重複しています。詳細は後述します。",
    ),
    # ---- the evidence ----
    "frontier.heading": ("Cost and quality", "コストと品質の関係"),
    "frontier.text": (
        "Each mark is a configuration, judged on the held-out photos; further up and further left "
        "is better. Bars are {confidence} confidence intervals. The dashed line joins the learned "
        "configurations that no cheaper one equals. Hollow marks were stopped early and might "
        "have become better with more training. A mark's number is its number of tokens.",
        "印は各構成の検証用画像での結果で、左上ほど優れています。縦棒は{confidence}信頼区間、"
        "破線は、より低コストで同等以上の構成が存在しない学習済み構成を結んだものです。"
        "白抜きの印は学習を途中で打ち切った構成で、学習を続ければ結果が向上する余地が"
        "あります。印に添えた数字はトークン数です。",
    ),
    "frontier.line": ("frontier", "最良の構成"),
    "frontier.tokens": ("tokens per photo", "画像1枚当たりのトークン数"),
    "frontier.bytes": ("bytes per photo", "画像1枚当たりのバイト数"),
    "frontier.by_tokens": (
        "{metric} by the number of tokens, which a generator or a search pays for. Marks of one "
        "token count are drawn slightly apart.",
        "トークン数と{metric}の関係。トークン数は画像生成や検索の計算量を左右します。"
        "同じトークン数の印は、重ならないように少しずらしています。",
    ),
    "frontier.by_bytes": (
        "{metric} by the number of bytes, which storage and transfer pay for, with the comparison "
        "methods.",
        "バイト数と{metric}の関係（従来方式を含む）。バイト数は保存と転送のコストを左右します。",
    ),
    "frontier.alt": ("Chart of {metric} over {cost}", "{cost}と{metric}の関係を示すグラフ"),
    "arms.heading": ("All configurations", "全構成の結果"),
    "arms.verdicts": (
        "Each criterion: the value, and in brackets the unfavourable end of its {confidence} "
        "confidence interval, which must meet it. Cheapest first. ★ is the recommendation. "
        "Comparison methods are never recommended, nor is what was stopped early, here with "
        "what was better at that time and by how much PSNR. "
        "“{fixed}”: what was kept equal while the number of tokens changed.",
        "各基準の欄には測定値と、括弧内に判定の対象となる{confidence}信頼区間の不利な側の端を"
        "示します。低コストの順に並べ、推奨構成には★を付けています。従来方式と途中で"
        "打ち切った構成は推奨の対象になりません。打ち切りの欄には、その時点で優れていた構成と"
        "PSNRの差を示します。「{fixed}」は、トークン数を変える際に"
        "一定に保った項目です。",
    ),
    "arms.measures": (
        "Every measure with its {confidence} confidence interval; what they mean is said under "
        "“{method}”.",
        "全指標の測定値と{confidence}信頼区間。各指標の意味は「{method}」をご覧ください。",
    ),
    "arms.cost": (
        "Cost of the learned configurations: parameters of encoder and decoder, computation for "
        "one photo (1 GFLOP is a thousand million arithmetic operations), and for one evaluation "
        "of a large generator (SiT-XL) on these tokens; photos per second were measured on this "
        "machine.",
        "学習済み構成のコスト：パラメータ数（エンコーダーとデコーダーの合計）、画像1枚当たりの"
        "計算量（1 GFLOP＝10億回の演算）、およびこのトークンを用いる大規模な画像生成モデル"
        "（SiT-XL）の評価1回当たりの計算量。処理速度はこの環境での実測値です。",
    ),
    "column.arm": ("Configuration", "構成"),
    "column.tokens": ("Tokens", "トークン数"),
    "column.shape": ("Shape or setting", "形状・設定"),
    "column.floats": ("Numbers", "数値の個数"),
    "column.bytes": ("Bytes", "バイト数"),
    "column.held": ("Held fixed", "固定した条件"),
    "column.verdict": ("Verdict", "判定"),
    "column.encode_speed": ("Encode, photos/s", "エンコード（枚/秒）"),
    "column.decode_speed": ("Decode, photos/s", "デコード（枚/秒）"),
    "column.seen": ("Photos seen in training", "学習した画像の延べ枚数"),
    "column.parameters": ("Parameters, M", "パラメータ数（百万）"),
    "column.encode": ("Encode, GFLOPs", "エンコード（GFLOPs）"),
    "column.decode": ("Decode, GFLOPs", "デコード（GFLOPs）"),
    "column.generator": ("Generator, GFLOPs", "画像生成モデル（GFLOPs）"),
    "column.class": ("Class", "クラス"),
    "column.photos": ("Photos", "枚数"),
    "column.all": ("All", "合計"),
    "column.defects": ("Defects", "欠陥数"),
    "column.diameter": ("Diameter, px", "直径（画素）"),
    "column.recall_before": ("Recall on originals, %", "元画像での正解率（%）"),
    "column.recall_after": ("Recall on rebuilt, %", "復元画像での正解率（%）"),
    "column.true": ("True class", "正解クラス"),
    "column.as": ("as {name}", "{name}と判定"),
    "column.corruption": ("Photos made worse by", "画像の劣化"),
    "column.split": ("Photos", "画像の区分"),
    "column.groups": ("Independent groups", "独立したグループ数"),
    "column.step": ("Step", "工程"),
    "column.time": ("Time", "所要時間"),
    "verdict.pass": ("passes", "合格"),
    "verdict.fail": ("fails", "不合格"),
    "verdict.stopped": (
        "stopped ({by}: +{gap} dB)",
        "打ち切り（{by}：+{gap} dB）",
    ),
    "verdict.reference": ("for comparison with {of}", "{of}との比較用"),
    "verdict.unfit": (
        "for comparison, though larger than {of}",
        "{of}との比較用（サイズが上回る）",
    ),
    "criterion": ("{name} {limit}", "{name}：{limit}"),
    "worst.heading": ("The worst cases", "復元結果が最も悪い画像"),
    "worst.text": (
        "The held-out photos that {arm} rebuilds worst, worst first, and the same photos by the "
        "cheapest configuration, {cheapest}. The error map shows where a rebuilt photo differs: "
        "black is no difference, the brightest is {levels} of 255 grey levels or more.",
        "「{arm}」による復元結果が悪い検証用画像を、悪い順に示します。最も低コストの構成"
        "「{cheapest}」による結果も並べています。誤差マップは元画像との差を表し、黒は差がなく、"
        "最も明るい部分は256階調のうち{levels}階調以上の差があることを示します。",
    ),
    "worst.text.one": (
        "The held-out photos that {arm} rebuilds worst, worst first. It is the cheapest "
        "configuration, too. The error map shows where a rebuilt photo differs: black is no "
        "difference, the brightest is {levels} of 255 grey levels or more.",
        "「{arm}」（最も低コストの構成でもあります）による復元結果が悪い検証用画像を、悪い順に"
        "示します。誤差マップは元画像との差を表し、黒は差がなく、"
        "最も明るい部分は256階調のうち{levels}階調以上の差があることを示します。",
    ),
    "picture.original": ("original", "元画像"),
    "picture.rebuilt": ("{arm}: {psnr} dB", "{arm}：{psnr} dB"),
    "picture.error": ("error of {arm}", "{arm}の誤差"),
    "picture.contrast": ("{arm}: {kept}", "{arm}：{kept}"),
    "picture.alt": ("{name}, {what}", "{name}、{what}"),
    "crops.heading": ("Defects, enlarged", "欠陥部の拡大"),
    "crops.text": (
        "First the {smallest} smallest marked defects, then the {least} that survive least in "
        "{arm}. A frame shows the place in the original. The percentage says how much of the "
        "defect's contrast is left: 100% all, 0% erased. To make it visible, the brightness is "
        "stretched, alike for all pictures of a row.",
        "はじめに最も小さい欠陥{smallest}件、続いて「{arm}」で最も失われた欠陥{least}件を"
        "示します。元画像の枠は欠陥の位置です。百分率は欠陥のコントラストが残った割合で、"
        "100%はすべて残存、0%は消失を表します。見やすさのため、同じ行の画像の明暗を"
        "一律に強調しています。",
    ),
    "crops.strip": ("{name}: diameter {size}", "{name}：直径{size}"),
    "size.heading": ("By size of the defect", "欠陥サイズ別の結果"),
    "size.text": (
        "Marked defects by diameter (of the circle of the same area, in the study's pixels), a "
        "quarter of them in each row. A defect survives if half of its contrast does.",
        "指定された欠陥を直径（同じ面積の円の直径、検証サイズでの画素数）の順に4等分しました。"
        "コントラストの半分以上が保たれた欠陥を「残存」としています。",
    ),
    "size.unmarked": (
        "{unmarked:photo of a defect has|photos of defects have} no marked region.",
        "欠陥画像のうち{unmarked}枚には、欠陥領域の指定がありません。",
    ),
    "size.all": (
        "Share of defects that survive, %, by configuration",
        "構成別の欠陥の残存率（%）",
    ),
    "class.heading": ("By class", "クラス別の結果"),
    "class.recall": (
        "{arm}: the share of each class that the classifier recognises, on originals and rebuilt "
        "photos, and PSNR, with {confidence} confidence intervals.",
        "{arm}：分類器が各クラスを正しく判定した割合（元画像と復元画像）とPSNR。"
        "括弧内は{confidence}信頼区間。",
    ),
    "class.confusion_before": (
        "Originals: what the classifier takes each class for, in photos",
        "元画像：各クラスに対する分類器の判定結果（枚数）",
    ),
    "class.confusion_after": (
        "Rebuilt by {arm}: the same",
        "{arm}の復元画像：各クラスに対する分類器の判定結果（枚数）",
    ),
    "robust.heading": ("Photos of lesser quality", "画像劣化に対する頑健性"),
    "robust.text": (
        "The held-out photos were made worse and then tokenized. PSNR compares the rebuilt photo "
        "with the worse photo that went in, everything else with the good one. “{metric}” counts "
        "defects that the classifier finds in the good photo.",
        "検証用画像を意図的に劣化させてからトークン化しました。PSNRは入力した劣化画像との比較、"
        "その他の指標は劣化前の画像との比較です。「{metric}」は、"
        "劣化前の画像で検出できた欠陥を対象としています。",
    ),
    "robust.all": ("{metric}, %, by configuration", "構成別の{metric}（%）"),
    "subgroup.heading": ("By subgroup", "サブグループ別の結果"),
    "subgroup.caption": ("{arm}, by {column}", "{arm}：{column}別"),
    "data.heading": ("What was found in the data", "データの確認結果"),
    "data.sizes": (
        "Smallest, median and largest width of the photos: {width} px; height: {height} px. They "
        "were fitted to {study} px: {how}.",
        "画像の幅は{width}画素、高さは{height}画素です（それぞれ最小、中央値、最大）。"
        "検証では{study}画素に揃えました（{how}）。",
    ),
    "data.fit.crop": (
        "scaled with their proportions, and cut at the centre",
        "縦横比を保って拡大または縮小し、中央部を切り出し",
    ),
    "data.fit.stretch": (
        "the whole photo is squeezed in, without its proportions",
        "縦横比を保たず、画像全体を拡大または縮小",
    ),
    "data.grey": ("All photos are grey.", "すべてグレースケールの画像です。"),
    "data.normal": ("Classes without defects: {classes}.", "欠陥のないクラス：{classes}。"),
    "data.group.column": (
        "Photos with the same “{group}” count as one piece of evidence.",
        "「{group}」の値が同じ画像は、独立したデータではなく1件（1グループ）として扱いました。",
    ),
    "data.group.stem": (
        "Photos of the same file name count as one piece of evidence.",
        "ファイル名が同じ画像は、独立したデータではなく1件（1グループ）として扱いました。",
    ),
    "data.group.none": (
        "Every photo counts as a piece of evidence of its own; if several show the same part, the "
        "intervals are too narrow.",
        "各画像を独立したデータ（1枚＝1グループ）として扱いました。同じ現物の画像が複数ある"
        "場合、信頼区間は実際より狭く見積もられています。",
    ),
    "data.counts": (
        "Photos by class, and the independent groups that they come from",
        "クラス別の枚数と独立したグループの数",
    ),
    "data.skipped": (
        "{count:file|files} could not be used: {shown}{more}.",
        "使用できなかったファイルは{count}件です：{shown}{more}。",
    ),
    "data.duplicates": (
        "{count:set|sets} of photos with exactly the same pixels: {shown}{more}.",
        "画素が完全に一致する画像が{count}組あります：{shown}{more}。",
    ),
    "data.near": (
        "{count:pair|pairs} of nearly the same photos within one split: {shown}{more}.",
        "同じ区分の中に、ほぼ同一の画像が{count}組あります：{shown}{more}。",
    ),
    "data.leaks": (
        "{count:held-out photo is|held-out photos are} (nearly) in the training photos: "
        "{shown}{more}.",
        "学習用画像と重複またはほぼ重複する検証用画像が{count}枚あります：{shown}{more}。",
    ),
    "data.dropped": (
        "{count:held-out photo was|held-out photos were} left out for that.",
        "このため、検証用画像{count}枚を評価から除外しました。",
    ),
    "data.clean": (
        "No damaged file, no duplicate, and no held-out photo among the training photos was found.",
        "破損ファイル、重複画像、および学習用画像と重複する検証用画像は見つかりませんでした。",
    ),
    "data.leak": ("{val} and {train} ({why})", "{val}と{train}（{why}）"),
    "data.more": (" and {count} more", "、ほか{count}件"),
    # what is too little or odd, by its code in results.json
    "remark.few_val": (
        "Only {n:held-out photo|held-out photos}: intervals are wide.",
        "検証用画像が{n}枚と少ないため、信頼区間が広くなります。",
    ),
    "remark.few_class_val": (
        "Class {class} has only {n:held-out photo|held-out photos}: its own figures say little.",
        "クラス「{class}」の検証用画像は{n}枚のみで、クラス別の数値は参考程度です。",
    ),
    "remark.few_defect_groups": (
        "Only {groups:independent group|independent groups} of defect photos are held out: even a "
        "perfect record proves no more than {least_provable:.1%}.",
        "検証用の欠陥画像は独立したグループが{groups}件のみです。"
        "すべて検出できても、統計的に示せるのは{least_provable:.1%}までです。",
    ),
    "remark.few_train": (
        "Only {n:training photo|training photos}: more would improve every tokenizer.",
        "学習用画像が{n}枚と少なく、枚数を増やせば復元の品質が向上する余地があります。",
    ),
    "remark.imbalance": (
        "The largest class has {ratio:.1f} times as many training photos as the smallest.",
        "学習用画像の枚数は、最多のクラスが最少のクラスの{ratio:.1f}倍です。",
    ),
    "remark.upscaled": (
        "{share:.0%} of the photos have fewer pixels than the study's and were enlarged.",
        "画素数が検証サイズに満たない画像が{share:.0%}あり、拡大して使用しました。",
    ),
    "remark.reduced": (
        "Photos were reduced {factor:.1f} times (by the median): what is smaller than a study "
        "pixel was lost before any tokenizer saw it.",
        "画像は検証のために{factor:.1f}分の1（中央値）に縮小しています。"
        "検証サイズの1画素より小さい特徴は、トークン化の前に失われています。",
    ),
    "remark.cropped": (
        "{share:.0%} of a photo (by the median) was cut off to fit the study's proportions.",
        "検証サイズの縦横比に合わせるため、画像の{share:.0%}（中央値）を切り落としています。",
    ),
    "remark.mixed_sizes": (
        "The photos are of different sizes: a study pixel is {low:.1f} to {high:.1f} photo pixels, "
        "so the same defect is not equally large in all.",
        "画像サイズが統一されておらず、検証サイズの1画素は元画像の{low:.1f}～{high:.1f}画素に"
        "相当します。同じ大きさの欠陥でも、画像によって検証時の大きさが異なります。",
    ),
    "remark.blank": (
        "{n:photo is|photos are} of one single colour.",
        "全面が単色の画像が{n}枚あります。",
    ),
    "remark.no_classes": (
        "The photos are in no class folders: nothing could be judged by a classifier.",
        "画像がクラス別のフォルダーに分かれていないため、分類器による評価はできません。",
    ),
    "remark.no_normal": (
        "No class is known to be free of defects: recall of defects could not be measured.",
        "欠陥のないクラスが特定できないため、欠陥検出率は測定できません。",
    ),
    "remark.no_defects": (
        "Every class is free of defects: recall of defects could not be measured.",
        "すべてのクラスが欠陥なしのため、欠陥検出率は測定できません。",
    ),
    "remark.metadata_unused": (
        "The table manifest.csv beside the photos was not used; results.json says why.",
        "画像と同じ場所にあるmanifest.csvは使用していません（理由はresults.jsonに記載）。",
    ),
    "remark.unmatched": (
        "{n} of {of:photo|photos} have no row in the metadata.",
        "全{of}枚のうち{n}枚の画像には、対応するメタデータがありません。",
    ),
    "method.heading": ("Method", "検証方法"),
    "method.training": (
        "Every tokenizer was trained on the training photos only, at {size} pixels; the held-out "
        "photos served for judging alone.",
        "トークナイザーは、{size}画素に揃えた学習用画像のみで学習し、"
        "検証用画像は評価のみに使用しました。",
    ),
    "method.stopping": (
        "Configurations were trained in rounds, and saw equally many photos in each. After a "
        "round a configuration is stopped if another with no more tokens and no more numbers "
        "comes to a PSNR that is higher by {margin} dB with {confidence} confidence.",
        "学習は複数の段階に分けて進め、各段階ではどの構成も同じ枚数の画像で学習しました。"
        "段階の終了時に、トークン数も数値の個数も同等以下でPSNRが{margin} dB以上高い"
        "（信頼度{confidence}）構成が別にある場合は、その構成の学習を打ち切りました。",
    ),
    "method.classifier": (
        "The classifier was trained on original training photos only and applied to originals and "
        "rebuilt photos alike. It never learned from rebuilt photos, as an inspection that is "
        "already in use would not have.",
        "分類器は学習用の元画像のみで学習し、元画像と復元画像の両方に適用しました。"
        "稼働中の検査システムと同様、復元画像は学習に使用していません。",
    ),
    "method.intervals": (
        "Confidence intervals ({confidence}, two-sided) count independent groups, not photos: "
        "Wilson's interval for shares, a bootstrap over groups for means. So each end alone is "
        "surer than {confidence}.",
        "信頼区間（両側{confidence}）は、画像の枚数ではなく独立したグループの数に基づきます。"
        "割合にはウィルソンの信頼区間、平均値にはグループ単位のブートストラップ法を"
        "用いました。片側の端だけを見る場合の信頼度は{confidence}より高くなります。",
    ),
    "method.baselines": (
        "The comparison methods are held to a tokenizer's size: JPEG and WebP take the best "
        "quality whose file is no larger, thumbnails and PCA (principal components of the training "
        "photos) keep no more numbers.",
        "従来方式は、比較するトークナイザーのサイズに合わせています。JPEGとWebPは"
        "ファイルサイズが上回らない範囲で最高の画質とし、縮小画像と主成分分析（PCA、"
        "学習用画像の主成分を使用）は数値の個数が上回らない範囲としました。",
    ),
    "method.bytes": (
        "Bytes are two for each number of a token, and for a codebook the bits of an entry's "
        "number, by which its numbers can be looked up; for JPEG and WebP those of the file with "
        "its header; one for each number of a thumbnail, and four for each of PCA.",
        "バイト数は、トークンの数値1個につき2バイト（コードブック方式では、数値を引き出すための"
        "番号のビット数）、JPEGとWebPではヘッダーを含むファイルサイズ、縮小画像では数値1個に"
        "つき1バイト、主成分分析では4バイトとして計算しています。",
    ),
    "method.choice": (
        "Of the learned configurations that were trained to the end and whose every criterion "
        "holds at the unfavourable end of the interval, the one with the fewest tokens is "
        "recommended, then with the fewest numbers, then with the fewest bytes.",
        "最後まで学習し、すべての基準を信頼区間の不利な側の端で満たした構成のうち、"
        "トークン数が最少のものを推奨します。同数の場合は数値の個数、次にバイト数が"
        "少ないものを優先します。",
    ),
    "means.psnr": (
        "The mean over photos of 10 log10 of 255 squared over the mean squared error; higher is "
        "closer to the original.",
        "255の2乗と平均二乗誤差の比の対数（10 log10）を画像ごとに求めた平均値。"
        "高いほど元画像に近いことを示します。",
    ),
    "means.ssim": (
        "Similarity of local structure, 1 for equal pictures.",
        "局所的な構造の類似度。1は完全な一致を示します。",
    ),
    "means.accuracy": (
        "Share of rebuilt photos whose class the classifier recognises.",
        "分類器が復元画像のクラスを正しく判定した割合。",
    ),
    "means.accuracy_drop": (
        "The classifier's accuracy on originals less that on rebuilt photos.",
        "元画像での正解率から復元画像での正解率を引いた差。",
    ),
    "means.defect_recall": (
        "Of all photos with a defect, the share in which the classifier finds one after "
        "rebuilding.",
        "すべての欠陥画像のうち、復元後に分類器が欠陥ありと判定した割合。",
    ),
    "means.defect_kept": (
        "Of the photos in whose original the classifier finds a defect, the share in which it "
        "still does after rebuilding.",
        "元画像で分類器が欠陥を検出できた画像のうち、復元後も検出できた割合。",
    ),
    "means.false_alarms": (
        "Of the defect-free photos that the classifier passes in the original, the share in which "
        "it sees a defect after rebuilding.",
        "元画像で分類器が良品と判定した良品画像のうち、復元後に欠陥ありと誤って判定された割合。",
    ),
    "means.contrast_kept": (
        "Slope of the rebuilt brightness on the original's inside and around a marked defect: "
        "100% all of the contrast is there, 0% erased.",
        "指定された欠陥領域とその周辺における、元画像の輝度に対する復元画像の輝度の回帰係数。"
        "100%はコントラストがすべて残存、0%は消失を示します。",
    ),
    "means.regions_surviving": (
        "Share of marked defects that keep at least half of their contrast.",
        "コントラストの半分以上が保たれた欠陥領域の割合。",
    ),
    "means.psnr_inside": (
        "PSNR of the pixels of marked defects alone.",
        "指定された欠陥領域内の画素のみで求めたPSNR。",
    ),
    "means.smallest_surviving": (
        "Smallest diameter such that nine in ten of the defects at least as large keep half of "
        "their contrast.",
        "その直径以上の欠陥の9割がコントラストの半分以上を保つ、最小の直径。",
    ),
    "means.kernel_distance": (
        "How differently originals and rebuilt photos are distributed in the classifier's "
        "features; 0 for no difference.",
        "分類器の特徴量における、元画像と復元画像の分布の違い。0は違いがないことを示します。",
    ),
    "limits.heading": ("Limits", "留意事項"),
    "limits.seed": (
        "Each configuration was trained once (seed {seed}); another run would give slightly other "
        "figures, which the intervals do not include.",
        "各構成の学習は1回のみです（乱数シード：{seed}）。再学習すると結果は多少変わりますが、"
        "その変動は信頼区間に含まれていません。",
    ),
    "limits.start": (
        "Every configuration starts from one trained tokenizer ({init}), cut or stretched to its "
        "shape, so configurations near that shape have a head start. Those with more tokens than "
        "it may not have learned to use them yet: equal figures do not show that they are useless.",
        "各構成は、学習済みの同じトークナイザー（{init}）を各構成の形状に合わせて変形したものから"
        "学習を始めます。そのため、これに近い構成ほど有利になります。また、トークン数がこれより多い構成は、"
        "増えたトークンの使い方をまだ十分に学習していない可能性があり、結果に差がないことは、"
        "トークンを増やす効果がないことを意味しません。",
    ),
    "limits.held_out": (
        "{val:held-out photo|held-out photos} in {groups:independent group|independent groups} "
        "are a small sample; the intervals hold for photos drawn alike.",
        "検証用画像は{val}枚、独立したグループは{groups}件と限られています。"
        "信頼区間が成り立つのは、同じ条件で得られた画像に限ります。",
    ),
    "limits.classifier": (
        "The criteria are only as good as the classifier: on the originals it finds {recall} of "
        "the defects and recognises {accuracy} of all photos.",
        "合格基準の確かさは分類器の性能に左右されます。元画像における分類器の欠陥検出率は"
        "{recall}、全体の正解率は{accuracy}です。",
    ),
    "limits.reduced": (
        "Photos were reduced {factor} times for the study (by the median). What is smaller than "
        "a pixel after that was lost before any tokenizer saw it.",
        "画像は検証のために{factor}分の1（中央値）に縮小しています。縮小後の1画素より小さい"
        "特徴は、トークン化の前に失われています。",
    ),
    "limits.budget": (
        "Training was limited by the time given; with more of it every tokenizer may lose less.",
        "学習時間は指定された範囲に限られています。時間を延ばせば、復元品質が"
        "向上する可能性があります。",
    ),
    "limits.many": (
        "Several configurations were judged on the same photos. The cheapest one that passes may "
        "owe a little to luck: confirm the choice on new photos.",
        "複数の構成を同じ画像で評価しているため、合格した構成の結果には偶然が含まれることが"
        "あります。採用前に、新しい画像での確認をお勧めします。",
    ),
    "repeat.heading": ("To repeat the study", "再現方法"),
    "repeat.command": ("Command: {command}", "実行コマンド：{command}"),
    "repeat.versions": ("softvq {version}; {machine}.", "softvq {version}、{machine}。"),
    "repeat.files": (
        "results.json and results.csv beside this file hold the same figures, unrounded.",
        "同じフォルダーのresults.jsonとresults.csvに、丸める前の数値があります。",
    ),
    "repeat.times": ("Time on this machine", "この環境での所要時間"),
    "footer": (
        "Written by softvq {version} (softvq study). The file fetches nothing.",
        "softvq {version}（softvq study）により作成。このファイルは外部通信を行いません。",
    ),
}
