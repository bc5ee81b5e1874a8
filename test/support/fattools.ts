/** FATtools, a Python package that set-up installs: it reads and writes chains, and minds partial bitmaps. */

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Extent } from "./images.ts";
import { run, temporaryDirectory } from "./run.ts";
import { tools } from "./windows.ts";

const program = join(import.meta.dirname, "fattools.py");

type Step =
  | { readonly do: "create"; readonly path: string; readonly size: number; readonly blockSize: number }
  | { readonly do: "child"; readonly path: string; readonly parent: string }
  | { readonly do: "write"; readonly path: string; readonly offset: number; readonly source: string }
  | { readonly do: "read"; readonly path: string; readonly target: string };

async function fatTools(steps: readonly Step[]): Promise<void> {
  await run("env", [`PYTHONPATH=${join(tools, "fattools")}`, "PYTHONDONTWRITEBYTECODE=1", "python3", program], {
    input: JSON.stringify(steps),
  });
}

function writing(path: string, extents: readonly Extent[]): Step[] {
  const folder = temporaryDirectory();
  return extents.map(({ offset, data }, index) => {
    const source = join(folder, `${index}`);
    writeFileSync(source, data);
    return { do: "write", path, offset, source };
  });
}

/** A new dynamic image and differencing ones, base first. Each child names its parent relative to itself, and absolutely. */
export async function createWithFatTools(
  images: readonly { readonly path: string; readonly extents: readonly Extent[] }[],
  disk: { readonly size: number; readonly blockSize: number },
): Promise<void> {
  const steps = images.flatMap(({ path, extents }, level): Step[] => {
    const parent = images[level - 1]?.path;
    const create: Step = parent === undefined ? { do: "create", path, ...disk } : { do: "child", path, parent };
    return [create, ...writing(path, extents)];
  });
  await fatTools(steps);
}

/** The whole disk; parents are found by their absolute paths. */
export async function readWithFatTools(path: string): Promise<Buffer> {
  const target = join(temporaryDirectory(), "disk.raw");
  await fatTools([{ do: "read", path, target }]);
  return readFileSync(target);
}
