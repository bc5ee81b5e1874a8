import { JobError } from "../../engine/engine.ts";
import { errnoOf, messageOf } from "../../tapdisk/errors.ts";
import { printable } from "./output.ts";

/** What a command can't do, in words for its user, and its exit status if that isn't the one for all failures. */
export class ToolError extends Error {
  override readonly name = "ToolError";
  readonly status: number | undefined;

  constructor(message: string, status?: number) {
    super(message);
    this.status = status;
  }
}

/** What is wrong with the command line. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/** The whole of what an error has to say to people: its message, and why, where that tells more. */
export function explain(error: unknown): string {
  const message = messageOf(error);
  const cause = error instanceof Error ? error.cause : undefined;
  return printable(
    !(cause instanceof Error) || message.includes(cause.message) ? message : `${message}: ${cause.message}`,
  );
}

/** The positive errno value that stands for an error: a job's own, a system call's, else `EIO`. */
export function errnoValue(error: unknown): number {
  return error instanceof JobError ? error.errno : errnoOf(error);
}
