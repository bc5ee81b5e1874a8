import { realpathSync } from "node:fs";
import { constants } from "node:os";
import { ToolError, UsageError } from "../cli/failure.ts";
import { print, printJson } from "../cli/output.ts";
import { suiteCommand } from "../cli/suite.ts";
import { type Extent, extentsOf } from "./extents.ts";
import { openChain } from "./map.ts";
import { help, json, name, valued } from "./options.ts";

const { EINVAL } = constants.errno;
const SECTOR = 512;

/** `vhd-util diff`. */
export const diff = suiteCommand("vhd-util", {
  name: "diff",
  summary: "Lists what may have changed between a point of a chain and an image above it.",
  options: {
    name,
    since: {
      ...valued("p", "ancestor", "the image whose content is the beginning, the parent by default", "file"),
      long: "since",
    },
    json: { ...json, description: "print a line of JSON for each extent, in bytes" },
    h: help,
  },
  manual: {
    details: [
      "A line for each run of sectors: the first one, and how many. Sectors that are not listed read the same in both; those " +
        "that are were written in between, though what was written may be what was there before.",
    ],
    examples: [{ text: "What a backup since base.vhd has to copy", command: "vhd-util diff -n disk.vhd -p base.vhd" }],
  },
  async run({ options, operands }, jobs) {
    const { name: path, since } = options;
    if (path === undefined || operands.length > 0) throw new UsageError("-n is missing");
    const { chain, sectors } = await openChain(jobs, path);
    let border = 1;
    if (since !== undefined) {
      const wanted = realpathSync(since);
      border = chain.findIndex(({ realPath }) => realPath === wanted);
      if (border < 0) throw new ToolError(`${since} is no ancestor of ${path}`, EINVAL);
    }
    for await (const { sector, sectors: length } of changes(
      extentsOf(jobs, { path, driver: "vhd" }, sectors),
      border,
    )) {
      if (options.json) printJson({ offset: sector * SECTOR, length: length * SECTOR });
      else print(`${sector} ${length}`);
    }
    return 0;
  },
});

/** The extents that images above a level have, neighbours joined. */
async function* changes(extents: AsyncIterable<Extent>, border: number): AsyncGenerator<Extent> {
  let last: Extent | undefined;
  for await (const extent of extents) {
    if (extent.level === null || extent.level >= border) continue;
    if (last !== undefined && last.sector + last.sectors === extent.sector) {
      last = { ...last, sectors: last.sectors + extent.sectors };
    } else {
      if (last !== undefined) yield last;
      last = extent;
    }
  }
  if (last !== undefined) yield last;
}
