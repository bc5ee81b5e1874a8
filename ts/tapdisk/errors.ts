import { constants } from "node:os";

/** What an error says to people. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The positive errno value of an error with a name of one as its `code`, as Node and the port have them; else `EIO`. */
export function errnoOf(error: unknown): number {
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  const numbers: Readonly<Record<string, number>> = constants.errno;
  return (typeof code === "string" ? numbers[code] : undefined) ?? constants.errno.EIO;
}
