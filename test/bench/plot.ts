/** The results as a picture: a panel for each case, a bar for each contender beside its figure, its range a line on it. */

import { allCases } from "./cases.ts";
import { contenderKinds } from "./contenders.ts";
import { digits } from "./markdown.ts";
import { type CaseResult, type Run, rates } from "./results.ts";
import { type Spread, spread } from "./statistics.ts";

const HEADLINE = "Operations per second: median of the rounds, and their range";
const COLUMNS = 2;
const PANEL = 560;
const MARGIN = 24;
const LEFT = 165;
const RIGHT = 60;
const BAR = 18;
const TITLE = 34;
const GAP = 20;
const HEAD = 74;
const LARGE_BYTES = 1 << 20;

const colours: Readonly<Record<string, string>> = {
  raw: "#8a8f98",
  "ours-nbd": "#2f7fd1",
  "ours-ring": "#12467f",
};
const OTHER = "#d9974a";
const CHAIN = "#86b4e0";
const INK = "#1f2430";
const FAINT = "#6b7280";

const legend: readonly (readonly [string, string])[] = [
  [colours["ours-ring"] ?? "", "ours, ring"],
  [colours["ours-nbd"] ?? "", "ours, NBD"],
  [CHAIN, "ours, chains"],
  [OTHER, "others"],
  [colours.raw ?? "", "the limit: the raw file"],
];

/** An SVG whose bars are as long as the median of the rounds, relative to the longest of their case. */
export function plot(run: Run): string {
  const panels = run.results.map(panel).filter(({ height }) => height > 0);
  const heights = Array.from({ length: COLUMNS }, () => HEAD);
  const parts: string[] = [];
  for (const { height, draw } of panels) {
    // Into the column that has most room: cases stay in their order, more or less.
    const column = heights.indexOf(Math.min(...heights));
    const top = heights[column] ?? HEAD;
    parts.push(...draw(MARGIN + column * (PANEL + MARGIN), top));
    heights[column] = top + height + GAP;
  }
  const width = MARGIN + COLUMNS * (PANEL + MARGIN);
  const height = Math.max(...heights);
  return [
    `<svg xmlns='http://www.w3.org/2000/svg' width='${width}' height='${height}' viewBox='0 0 ${width} ${height}' ` +
      `font-family='system-ui, sans-serif' font-size='12' fill='${INK}'>`,
    `<title>${HEADLINE}</title>`,
    `<rect width='100%' height='100%' fill='white'/>`,
    text(MARGIN, 30, HEADLINE, "font-size='17' font-weight='600'"),
    ...legend.flatMap(([colour, what], index) => {
      const x = MARGIN + index * 130;
      return [`<rect x='${x}' y='45' width='11' height='11' rx='2' fill='${colour}'/>`, text(x + 17, 55, what)];
    }),
    ...parts,
    "</svg>",
    "",
  ].join("\n");
}

interface Panel {
  readonly height: number;
  readonly draw: (x: number, y: number) => string[];
}

function panel(result: CaseResult): Panel {
  const kind = allCases.find(({ name }) => name === result.case);
  const large = (kind?.blockBytes ?? 0) >= LARGE_BYTES;
  const rows = contenderKinds.flatMap(({ name, title }) => {
    const values = spread(rates(result, name).filter((rate) => rate !== undefined));
    return values === undefined ? [] : [{ name, title, values }];
  });
  const longest = Math.max(...rows.map(({ values }) => values.maximum));
  return {
    height: rows.length === 0 ? 0 : TITLE + rows.length * BAR,
    draw: (x, y) => [
      text(x, y + 14, kind?.title ?? result.case, "font-size='13' font-weight='600'"),
      text(
        x,
        y + 28,
        `${result.mode}, ${large ? "operations" : "1000 operations"} a second`,
        `fill='${FAINT}' font-size='11'`,
      ),
      ...rows.flatMap(({ name, title, values }, index) =>
        bar(x, y + TITLE + index * BAR, name, title, values, longest, large ? 1 : 1000),
      ),
    ],
  };
}

function bar(
  x: number,
  y: number,
  name: string,
  title: string,
  values: Spread,
  longest: number,
  unit: number,
): string[] {
  const scale = (value: number) => (value / longest) * (PANEL - LEFT - RIGHT);
  const start = x + LEFT;
  const [width, low, high] = [values.median, values.minimum, values.maximum].map((value) => Math.max(1, scale(value)));
  const colour = colours[name] ?? (name.startsWith("ours-chain") ? CHAIN : OTHER);
  const own = name.startsWith("ours") ? "font-weight='600'" : "";
  const middle = y + (BAR - 4) / 2;
  return [
    text(start - 8, y + 11, title, `text-anchor='end' ${own}`),
    `<rect x='${start}' y='${y}' width='${width?.toFixed(1)}' height='${BAR - 4}' rx='2' fill='${colour}'/>`,
    `<line x1='${(start + (low ?? 0)).toFixed(1)}' y1='${middle}' x2='${(start + (high ?? 0)).toFixed(1)}' y2='${middle}' ` +
      `stroke='${INK}' stroke-opacity='0.55'/>`,
    text(start + (high ?? 0) + 6, y + 11, digits(values.median / unit), own),
  ];
}

function text(x: number, y: number, content: string, attributes = ""): string {
  const escaped = content.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  return `<text x='${x.toFixed(1)}' y='${y}' ${attributes}>${escaped}</text>`;
}
