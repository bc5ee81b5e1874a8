import { lstatSync, readdirSync } from "node:fs";
import { basename, join } from "node:path";
import { JobError } from "../../engine/engine.ts";
import type { Jobs } from "../cli/jobs.ts";
import { formatBytes, print, printable, printJson, styled } from "../cli/output.ts";
import { suiteCommand } from "../cli/suite.ts";
import { describeImage, type ImageDescription } from "./image.ts";
import { help, json } from "./options.ts";
import { physicalSize } from "./query.ts";

/** An image in the forest. */
interface Node {
  readonly name: string;
  readonly image: ImageDescription | undefined;
  readonly problems: readonly string[];
  readonly children: Node[];
}

const unicode = { branch: "├─ ", last: "└─ ", pipe: "│  ", none: "   " } as const;
const ascii = { branch: "|- ", last: "`- ", pipe: "|  ", none: "   " } as const;
type Lines = typeof unicode | typeof ascii;

/** Whether the locale's letters are Unicode's. */
function isUnicode({ LC_ALL, LC_CTYPE, LANG }: NodeJS.ProcessEnv): boolean {
  return /utf-?8/i.test(LC_ALL || LC_CTYPE || LANG || "");
}

/** `vhd-util tree`. */
export const tree = suiteCommand("vhd-util", {
  name: "tree",
  summary: "Shows the images of folders as a forest, children below their parents, with what is wrong with them.",
  options: {
    ascii: { long: "ascii", description: "draw with ASCII alone, as is done where the locale has no Unicode" },
    json: { ...json, description: "print the forest as JSON" },
    h: help,
  },
  operands: [
    {
      name: "path",
      kind: "file",
      description: "images, and folders whose .vhd files are taken; . by default",
      required: false,
      variadic: true,
    },
  ],
  manual: { examples: [{ text: "What this folder has", command: "vhd-util tree" }] },
  async run({ options, operands }, jobs) {
    const roots = await forest(jobs, filesOf(operands.length === 0 ? ["."] : operands));
    if (options.json) {
      printJson(roots.map(asJson));
      return 0;
    }
    const lines = options.ascii || !isUnicode(process.env) ? ascii : unicode;
    for (const root of roots) show(root, "", "", lines);
    return 0;
  },
});

function filesOf(paths: readonly string[]): string[] {
  return paths.flatMap((path) => {
    if (!lstatSync(path).isDirectory()) return [path];
    const names = readdirSync(path).filter((name) => name.toLowerCase().endsWith(".vhd"));
    return names.sort().map((name) => (path === "." ? name : join(path, name)));
  });
}

async function forest(jobs: Jobs, paths: readonly string[]): Promise<Node[]> {
  const nodes: Node[] = [];
  for (const path of paths) nodes.push(await examine(jobs, path));
  const byPath = new Map(
    nodes.flatMap((node) => (node.image === undefined ? [] : [[node.image.realPath, node] as const])),
  );
  const roots: Node[] = [];
  for (const node of nodes) {
    const parent = node.image?.parent;
    const found = parent === null || parent === undefined ? undefined : byPath.get(parent);
    if (found === undefined || leadsTo(found, node)) roots.push(node);
    else found.children.push(node);
  }
  return roots;
}

/** Whether a node is below another one: chains may be loops. */
function leadsTo(below: Node, above: Node): boolean {
  return below === above || above.children.some((child) => leadsTo(below, child));
}

async function examine(jobs: Jobs, path: string): Promise<Node> {
  const name = printable(path);
  try {
    const image = await describeImage(jobs, path, { bat: true, parent: true });
    const { problem, footerProblem, batProblem, parentProblem } = image;
    const problems = [
      problem,
      footerProblem,
      problem === null && image.type !== "fixed" ? batProblem : null,
      parentProblem,
    ];
    return { name, image, problems: problems.flatMap((one) => (one === null ? [] : [one.message])), children: [] };
  } catch (error) {
    if (!(error instanceof JobError)) throw error;
    return { name, image: undefined, problems: [error.message], children: [] };
  }
}

function describe({ image }: Node): string {
  if (image === undefined || image.problem !== null) return "";
  const physical = physicalSize(image);
  const parts = [
    image.type,
    formatBytes(Number(image.size)),
    ...(physical === undefined ? [] : [`${formatBytes(physical)} on disk`]),
    ...((image.footer?.hidden ?? 0) === 0 ? [] : ["hidden"]),
  ];
  return ` ${styled("dim", `(${parts.join(", ")})`)}`;
}

function show(node: Node, first: string, rest: string, lines: Lines): void {
  const parent = node.image?.type === "differencing" && first === "" ? node.image.parent : null;
  const below = parent === null || parent === undefined ? "" : ` ${styled("dim", `on ${printable(basename(parent))}`)}`;
  print(`${first}${styled("bold", node.name)}${describe(node)}${below}`);
  for (const problem of node.problems) print(`${rest}${styled("red", `! ${printable(problem)}`)}`);
  for (const [index, child] of node.children.entries()) {
    const last = index === node.children.length - 1;
    show(child, rest + (last ? lines.last : lines.branch), rest + (last ? lines.none : lines.pipe), lines);
  }
}

function asJson({ name, image, problems, children }: Node): object {
  return {
    path: image?.path ?? name,
    type: image?.type ?? null,
    virtualSize: image === undefined ? null : Number(image.size),
    physicalSize: (image === undefined ? undefined : physicalSize(image)) ?? null,
    hidden: image?.footer?.hidden ?? 0,
    uuid: image?.footer?.uuid ?? null,
    parent: image?.parent ?? null,
    problems,
    children: children.map(asJson),
  };
}
