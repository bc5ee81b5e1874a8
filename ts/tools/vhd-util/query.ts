import { constants } from "node:os";
import { errnoValue, explain, UsageError } from "../cli/failure.ts";
import type { Jobs } from "../cli/jobs.ts";
import { print, printJson, say } from "../cli/output.ts";
import { suiteCommand } from "../cli/suite.ts";
import { describeChain, type ImageDescription } from "./image.ts";
import { flag, help, json, name } from "./options.ts";

const { EINVAL } = constants.errno;
const FOOTER = 512;

/** One line of the answer, and the errno value of what went wrong with it, 0 if nothing did. */
interface Line {
  readonly text: string;
  readonly errno: number;
}

const line = (text: string): Line => ({ text, errno: 0 });

/** Bytes that the image takes: up to its footer's end. */
export function physicalSize(image: ImageDescription): number | undefined {
  if (image.type === "fixed" || image.type === "raw") return image.fileSize;
  return image.bat === null ? undefined : image.bat.end + FOOTER;
}

/** Megabytes to which the disk can grow without its metadata being moved. The original knows blocks of 2 MiB alone. */
export function largestFastSize({ type, header }: ImageDescription): number {
  if (type === "fixed" || header === null) return 0;
  return Math.floor((header.maxTableEntries * header.blockSize) / 2 ** 20);
}

/** Images in the chain, a raw parent included; undefined where a parent is not found, or can't be used. */
export function chainDepth(chain: readonly ImageDescription[]): number | undefined {
  return chain.some((image) => image.problem !== null || image.parentProblem !== null) ? undefined : chain.length;
}

function physical(image: ImageDescription): Line {
  const size = physicalSize(image);
  if (size !== undefined) return line(`${size}`);
  const errno = image.batProblem?.errno ?? EINVAL;
  return { text: `failed to get physical size: -${errno}`, errno };
}

function parent(path: string, image: ImageDescription, resolved: boolean): Line {
  if (image.type !== "differencing") return line(`${path} has no parent`);
  const unresolved = image.locators.find((locator) => locator.name !== null)?.name ?? null;
  const found = resolved ? image.parent : unresolved;
  if (found !== null) return line(found);
  return { text: "query failed", errno: image.parentProblem?.errno ?? EINVAL };
}

function depth(chain: readonly ImageDescription[]): Line {
  const length = chainDepth(chain);
  if (length !== undefined) return line(`chain depth: ${length}`);
  const broken = chain.find((image) => image.problem !== null || image.parentProblem !== null);
  const errno = broken?.problem?.errno ?? broken?.parentProblem?.errno ?? EINVAL;
  return { text: `error checking chain depth: -${errno}`, errno };
}

function allocated(image: ImageDescription): Line {
  if (image.bat !== null) return line(`${image.bat.allocated}`);
  const errno = image.batProblem?.errno ?? EINVAL;
  return { text: `error reading bat: -${errno}`, errno };
}

/** `vhd-util query`. */
export const query = suiteCommand("vhd-util", {
  name: "query",
  summary: "Tells what an image is, a line for each question, in a fixed order.",
  usage:
    "options: <-n name> [-v print virtual size (in MB)] [-s print physical utilization (bytes)] [-p print parent] " +
    "[-f print fields] [-m print marker] [-d print chain depth] [-S print max virtual size (MB) for fast resize] " +
    "[-a print allocated block count] [-u don't resolve parent path] [-h help]",
  options: {
    name,
    size: flag("v", "the virtual size in MiB"),
    physical: flag("s", "bytes that the image takes"),
    parent: flag("p", "the path of the parent"),
    hidden: flag("f", "the hidden flag"),
    marker: flag("m", "the marker"),
    depth: flag("d", "images in the chain"),
    allocated: flag("a", "blocks that are allocated"),
    fastSize: flag("S", "the virtual size in MiB that a fast resize can reach"),
    unresolved: flag("u", "the parent as the image names it, not where it is"),
    json,
    h: help,
  },
  manual: {
    examples: [
      { text: "Virtual size, physical size and parent", command: "vhd-util query -vsp -n disk.vhd" },
      { text: "All there is to tell, for a program", command: "vhd-util query --json -n disk.vhd" },
    ],
  },
  async run({ options }, jobs) {
    const { name: path } = options;
    if (path === undefined) throw new UsageError("-n is missing");
    if (options.json) return await queryJson(jobs, path);
    let chain: ImageDescription[];
    try {
      chain = await describeChain(jobs, path, {
        bat: options.physical === true || options.allocated === true,
        parent: options.parent === true,
        parents: options.depth === true,
      });
    } catch (error) {
      print(`error opening ${path}: -${errnoValue(error)}`);
      say(`vhd-util query: ${explain(error)}`);
      return errnoValue(error);
    }
    const [image] = chain as [ImageDescription];
    if (image.problem !== null) {
      print(`error opening ${path}: -${image.problem.errno}`);
      say(`vhd-util query: ${image.problem.message}`);
      return image.problem.errno;
    }
    const lines = [
      ...(options.size ? [line(`${image.size >> 20n}`)] : []),
      ...(options.physical ? [physical(image)] : []),
      ...(options.parent ? [parent(path, image, options.unresolved !== true)] : []),
      ...(options.hidden ? [line(`hidden: ${image.footer?.hidden ?? 0}`)] : []),
      ...(options.marker ? [line(`marker: ${image.batmap?.marker ?? 0}`)] : []),
      ...(options.depth ? [depth(chain)] : []),
      ...(options.allocated ? [allocated(image)] : []),
      ...(options.fastSize ? [line(`${largestFastSize(image)}`)] : []),
    ];
    for (const { text } of lines) print(text);
    for (const problem of chain.flatMap((one) => [one.batProblem, one.problem, one.parentProblem])) {
      if (problem !== null && lines.some(({ errno }) => errno !== 0)) say(`vhd-util query: ${problem.message}`);
    }
    return lines.find(({ errno }) => errno !== 0)?.errno ?? 0;
  },
});

async function queryJson(jobs: Jobs, path: string): Promise<number> {
  const chain = await describeChain(jobs, path, { bat: true, parents: true });
  const [image] = chain as [ImageDescription];
  printJson({
    path,
    type: image.type,
    virtualSize: Number(image.size),
    physicalSize: physicalSize(image) ?? null,
    uuid: image.footer?.uuid ?? null,
    parent: image.parent,
    parentName: image.locators.find((locator) => locator.name !== null)?.name ?? null,
    hidden: image.footer?.hidden ?? 0,
    marker: image.batmap?.marker ?? 0,
    depth: chainDepth(chain) ?? null,
    blockSize: image.header?.blockSize ?? null,
    blocks: image.bat?.blocks ?? null,
    allocatedBlocks: image.bat?.allocated ?? null,
    largestFastSize: largestFastSize(image) * 2 ** 20,
    problems: chain.flatMap((one) => [one.problem, one.batProblem, one.parentProblem]).filter((one) => one !== null),
  });
  return image.problem?.errno ?? 0;
}
