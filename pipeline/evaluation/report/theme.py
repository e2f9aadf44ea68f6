"""The report's style sheet: one file, no font or picture from elsewhere, light and dark."""

CSS = """
:root{color-scheme:light dark;--paper:#faf9f6;--card:#fff;--ink:#1d1c1a;--soft:#64605a;--line:#e3dfd7;
--student:#0b7a5c;--base:#b4540a;--teacher:#3d3a36;--control:#6a5fa8;--slow:#6a5fa8;--fast:#0b7a5c;
--good:#d9f0e2;--good-ink:#0a5a35;--mid:#fbecc8;--mid-ink:#6f4a00;--bad:#f9dcd8;--bad-ink:#8f1d14}
@media(prefers-color-scheme:dark){:root{--paper:#161615;--card:#1f1e1d;--ink:#eceae5;--soft:#a5a099;--line:#383632;
--student:#4cc9a0;--base:#f0a35e;--teacher:#cfcac2;--control:#a99ee6;--slow:#a99ee6;--fast:#4cc9a0;
--good:#14402c;--good-ink:#9be8c1;--mid:#463708;--mid-ink:#f6d98a;--bad:#4d1f1b;--bad-ink:#ffb9b0}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:40px 20px 80px}
h1{font-size:clamp(1.7rem,4.5vw,2.6rem);line-height:1.15;letter-spacing:-.02em;margin:0 0 10px;text-wrap:balance}
h2{font-size:1.35rem;letter-spacing:-.01em;margin:56px 0 6px}
h3{font-size:1rem;margin:22px 0 6px}
p{max-width:72ch;margin:6px 0 14px}.soft{color:var(--soft)}a{color:var(--student)}
.numbers{display:grid;grid-template-columns:repeat(auto-fit,minmax(220px,1fr));gap:16px;margin:26px 0 20px}
.numbers div,.card{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:18px 20px}
.numbers b{display:block;font-size:2.7rem;line-height:1.1;letter-spacing:-.03em;color:var(--student);
font-variant-numeric:tabular-nums}
.numbers span{color:var(--soft);font-size:.93rem}
.verdicts{list-style:none;margin:0;padding:0;display:grid;gap:6px}
.verdicts li{padding-left:30px;position:relative;max-width:80ch}
.verdicts li::before{position:absolute;left:0;top:1px;width:21px;height:21px;border-radius:50%;text-align:center;
font:700 13px/21px system-ui}
.verdicts .won::before{content:"\\2713";background:var(--good);color:var(--good-ink)}
.verdicts .lost::before{content:"\\2715";background:var(--bad);color:var(--bad-ink)}
.verdicts .open::before{content:"\\2248";background:var(--mid);color:var(--mid-ink)}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:14px;background:var(--card)}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:9px 9px;text-align:right;border-top:1px solid var(--line);white-space:nowrap}
thead td{border-top:0}thead th{border-top:0;color:var(--soft);font-weight:600;font-size:.8rem;vertical-align:bottom}
th[scope=row],td.text,th.text{text-align:left}th[scope=row]{font-weight:600}
th[scope=row] small{display:block;font-weight:400;color:var(--soft);white-space:normal;max-width:34ch;
line-height:1.35}
tr.student{background:color-mix(in srgb,var(--student) 9%,transparent)}
.chip{display:inline-block;padding:1px 8px;border-radius:20px;font-weight:650}
.chip.good{background:var(--good);color:var(--good-ink)}.chip.mid{background:var(--mid);color:var(--mid-ink)}
.chip.bad{background:var(--bad);color:var(--bad-ink)}.range{display:block;color:var(--soft);font-size:.78rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:16px}
figure{margin:0}figcaption{color:var(--soft);font-size:.88rem;margin-top:6px}
svg{width:100%;height:auto;display:block;font:12px system-ui,sans-serif}
svg .grid{stroke:var(--line);stroke-width:1}svg .axis{stroke:var(--soft)}svg text{fill:var(--soft)}
svg .label{font-size:12.5px}
svg .curve{fill:none;stroke:var(--soft);stroke-width:1.5;stroke-dasharray:5 4}
svg .leader{stroke:var(--line)}svg .handoff{stroke:var(--ink);stroke-dasharray:2 3}
svg .loss{fill:none;stroke-width:2}svg .faint{stroke-width:1;opacity:.22}svg .interval{stroke-width:2}
svg .dot{stroke:var(--card);stroke-width:1.5}
svg .teacher{--c:var(--teacher)}svg .base{--c:var(--base)}svg .student{--c:var(--student)}
svg .control{--c:var(--control)}
svg .slow{--c:var(--slow)}svg .fast{--c:var(--fast)}svg .dot,svg .fill{fill:var(--c)}
svg .interval,svg .loss{stroke:var(--c)}
svg text.mark{fill:var(--c,var(--ink));font-weight:600;paint-order:stroke;stroke:var(--card);stroke-width:4px}
svg.bar{width:100px;height:16px;display:inline-block;vertical-align:middle}.bar .track{fill:var(--line)}
.bar .fill{opacity:.55}
.bar .one{stroke:var(--ink);stroke-width:1;opacity:.6}
.gallery{display:grid;gap:14px;
grid-template-columns:repeat(auto-fit,minmax(min(100%,calc(var(--n)*160px)),1fr))}
.shots{display:grid;gap:10px;grid-template-columns:repeat(var(--n),minmax(0,1fr))}
.shots figure{position:relative;text-align:center}
.shots img{width:100%;height:auto;aspect-ratio:var(--ratio,1);border-radius:8px;display:block;background:var(--line)}
.shots img.pixels{image-rendering:pixelated}
.shots figcaption{white-space:pre-line;line-height:1.3;font-size:.78rem;margin-top:4px}
.verdict{position:absolute;right:6px;top:6px;width:22px;height:22px;border-radius:50%;font:700 13px/22px system-ui}
.verdict.yes{background:#0f7b52;color:#fff}.verdict.no{background:#be2828;color:#fff}
.row{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:12px 14px 10px}
.row h3{margin:0 0 8px;font-weight:600}
details{margin-top:10px}summary{cursor:pointer;font-weight:600}details .gallery{margin-top:12px}
pre{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:14px;padding:14px;
font-size:.8rem;line-height:1.45}
code{font-family:ui-monospace,SFMono-Regular,Menlo,monospace;font-size:.86em;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 18px;margin:0}dt{color:var(--soft)}dd{margin:0;
min-width:0}
.legend{display:flex;flex-wrap:wrap;gap:16px;font-size:.85rem;color:var(--soft);margin:8px 0 12px}
@media(max-width:640px){.shots{grid-template-columns:repeat(3,minmax(0,1fr))}dl{grid-template-columns:1fr}
dd{margin-bottom:8px}}
@media print{.row,figure,.card{break-inside:avoid}}
"""
