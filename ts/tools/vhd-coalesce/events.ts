/** What the command tells, as JSON for programs and in words for people. */

import * as z from "zod";
import { formatBytes, print, printable, printJson, say } from "../cli/output.ts";
import { duration } from "../cli/progress.ts";

const bytes = z.int().nonnegative();

const estimateEvent = z
  .object({
    event: z.literal("estimate"),
    target: z.string().describe("path of the image that takes the data in"),
    bytes: bytes.describe("bytes to copy"),
    zeroBytes: bytes.describe("bytes to make zeros"),
    blocks: bytes.describe("blocks that the target must allocate"),
    space: bytes.describe("bytes that the target needs of its file system at most"),
    free: bytes.nullable().describe("bytes that are free there, if that is known"),
    seconds: z.number().nonnegative().nullable().describe("how long it may take, if that can be told"),
  })
  .describe("what a dry run found");

const progressEvent = z
  .object({
    event: z.literal("progress"),
    phase: z.string().describe("what it is at"),
    done: z.number().nonnegative().describe("how much of that is done: bytes, unless the phase's name says otherwise"),
    total: z.number().nonnegative().describe("how much it is in all, 0 if that is not known"),
    rate: z.number().describe("how much in a second"),
    secondsLeft: z.number().nonnegative().nullable(),
  })
  .describe("how far it is, a few times a second");

const mergedEvent = z
  .object({
    event: z.literal("merged"),
    target: z.string(),
    sectors: bytes.describe("sectors of 512 bytes that this run copied or made zeros"),
    zeroed: bytes.describe("those of them that were made zeros"),
    resumedAt: bytes.describe("the sector before which an earlier run had done everything"),
    seconds: z.number().nonnegative(),
  })
  .describe("the merge is done and durable");

const reparentedEvent = z
  .object({ event: z.literal("reparented"), path: z.string(), parent: z.string() })
  .describe("an image has another parent now");

const removedEvent = z.object({ event: z.literal("removed"), path: z.string() }).describe("an image was removed");

const eventSchema = z.discriminatedUnion("event", [
  estimateEvent,
  progressEvent,
  mergedEvent,
  reparentedEvent,
  removedEvent,
]);

/** Something that the command tells, but its progress. */
export type Event = Exclude<z.infer<typeof eventSchema>, { readonly event: "progress" }>;

/** Tells something: as JSON, or in words. */
export function tell(event: Event, json: boolean): void {
  if (json) printJson(event);
  else describe(event);
}

/** Prints the JSON Schema of the events. */
export function printSchema(): void {
  print(JSON.stringify(z.toJSONSchema(eventSchema), undefined, 2));
}

function describe(event: Event): void {
  switch (event.event) {
    case "estimate": {
      const zeros = event.zeroBytes > 0 ? `, ${formatBytes(event.zeroBytes)} to make zeros` : "";
      const free = event.free === null ? "" : ` (${formatBytes(event.free)} free)`;
      print(`target: ${printable(event.target)}`);
      print(`to copy: ${formatBytes(event.bytes)}${zeros}`);
      print(`blocks to allocate: ${event.blocks}`);
      print(`space needed: at most ${formatBytes(event.space)}${free}`);
      if (event.seconds !== null) print(`time: about ${duration(event.seconds)}`);
      return;
    }
    case "merged": {
      const copied = formatBytes((event.sectors - event.zeroed) * 512);
      const zeroed = event.zeroed > 0 ? `, ${formatBytes(event.zeroed * 512)} of zeros` : "";
      const rate = event.seconds >= 1 ? `, ${formatBytes((event.sectors * 512) / event.seconds)}/s` : "";
      if (event.resumedAt > 0) say(`went on at sector ${event.resumedAt}`);
      print(`merged into ${printable(event.target)}: ${copied}${zeroed} in ${duration(event.seconds)}${rate}`);
      return;
    }
    case "reparented":
      print(printable(`${event.path}: its parent is ${event.parent} now`));
      return;
    case "removed":
      print(printable(`removed ${event.path}`));
  }
}
